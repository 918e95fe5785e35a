//! Two processes ask one server with faults, keep what they get in one file, and are killed again and again: in the end
//! every question has its answer, none was paid for twice, and the audit agrees with the server's own books.
//!
//! The small run is a test like any other. The large one takes a minute or two and is asked for by name:
//!
//! ```sh
//! cargo test --release -p because-llm --all-features --test it -- --ignored --exact soak::large --nocapture
//! ```
//!
//! `BECAUSE_SOAK="calls kills seed"` in the environment makes it longer, or another one.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use because_llm::{ChatError, ChatModel, ModelId, ModelStack, OpenAi, Stop, Store, Usage, drive};
use serde::{Deserialize, Serialize};

use crate::fault_server::{Call, Does, FaultServer, MODEL, about, right};

const CLIENT: &str = "BECAUSE_LLM_SOAK_CLIENT";
const CONCURRENCY: usize = 64;
/// Long enough that only a hang takes it, also on a machine with other things to do.
const TIMEOUT: Duration = Duration::from_secs(4);

/// What a client process is told to do.
#[derive(Debug, Serialize, Deserialize)]
struct Work {
    url: String,
    store: std::path::PathBuf,
    /// The questions, by number, in this order; those that both processes ask are far from each other in time.
    from: u32,
    to: u32,
}

fn question(n: u32) -> String {
    format!("question {n}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small() {
    let _ = soak(2_000, 3, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute or more"]
async fn large() {
    let text = std::env::var("BECAUSE_SOAK").unwrap_or_else(|_| "100000 20 1".into());
    let numbers: Vec<u64> = text
        .split_whitespace()
        .map(|number| number.parse().unwrap())
        .collect();
    let [calls, kills, seed] = numbers[..] else {
        panic!("BECAUSE_SOAK is three numbers, as in \"100000 20 1\", not {text:?}");
    };
    let report = soak(
        u32::try_from(calls).unwrap(),
        u32::try_from(kills).unwrap(),
        seed,
    )
    .await;
    std::io::stdout()
        .lock()
        .write_all(report.as_bytes())
        .unwrap();
}

/// What a client process does. Does nothing on its own.
#[tokio::test]
async fn client() {
    let Ok(work) = std::env::var(CLIENT) else {
        return;
    };
    let work: Work = serde_json::from_str(&work).unwrap();
    let client = OpenAi::new(MODEL)
        .base_url(work.url)
        .timeout(TIMEOUT)
        .build()
        .unwrap();
    let model = ModelStack::new(client)
        .store(Store::open(work.store).unwrap())
        .concurrency(CONCURRENCY)
        .backoff(Duration::from_millis(5))
        .build()
        .unwrap();
    // Some once, some twice at the same time, some again later.
    let questions = (work.from..work.to).flat_map(|n| {
        let twice = (n % 10 == 0).then_some(n);
        let again = (n % 97 == 0 && n >= work.from + 500).then(|| n - 500);
        [Some(n), twice, again].into_iter().flatten()
    });
    let mut missed: Vec<u32> = questions.collect();
    while !missed.is_empty() {
        let jobs = std::mem::take(&mut missed).into_iter().map(|n| {
            let model = &model;
            async move {
                let request = about(&question(n));
                match model.chat(&request).await {
                    Ok(response) => {
                        assert_eq!(response.answer, right(&request).0);
                        Ok(None)
                    }
                    // Out of repetitions or repairs; a person would run it again.
                    Err(error) if error.is_retryable() => Ok(Some(n)),
                    Err(ChatError::Invalid { .. }) => Ok(Some(n)),
                    Err(error) => Err(error),
                }
            }
        });
        drive(jobs, CONCURRENCY, &Stop::default(), |done| {
            missed.extend(done);
        })
        .await
        .unwrap();
    }
}

async fn soak(questions: u32, kills: u32, seed: u64) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("llm.sqlite");
    let server = FaultServer::run(move |key, nth| {
        let chance = draw(&[&seed.to_le_bytes(), key.as_bytes(), &nth.to_le_bytes()]);
        match chance < 0.05 {
            true => Does::FAULTS[(chance / 0.05 * Does::FAULTS.len() as f64) as usize],
            false => Does::Answers,
        }
    })
    .await;
    let begun = Instant::now();
    let mut clients = Clients::new(&server.url, &path, questions);
    for kill in 0..kills {
        // Spread over the run, at a moment that nothing in it depends on.
        let place = (f64::from(kill) + draw(&[&seed.to_le_bytes(), &kill.to_le_bytes()]))
            / f64::from(kills + 1);
        let until = (place * f64::from(questions)) as usize;
        while server.count() < until {
            clients.look();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let late = draw(&[b"late", &seed.to_le_bytes(), &kill.to_le_bytes()]);
        tokio::time::sleep(Duration::from_secs_f64(late * 0.02)).await;
        clients.kill(match kill % 3 {
            0 => &[0],
            1 => &[0, 1],
            _ => &[1],
        });
    }
    while clients.look() > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let seconds = begun.elapsed().as_secs_f64();
    assert!(clients.killed.len() as u32 >= kills);

    // Alone with the file, what was under way at the kills shows as interrupted.
    let store = Store::open(&path).unwrap();
    let model = ModelId {
        model: MODEL.into(),
        endpoint: server.url.clone(),
    };
    every_question_has_its_answer(&store, &model, questions);
    let report = Books::compare(
        &server.calls(),
        &rows(&store, &clients.processes),
        &clients.killed,
    );
    report.check(&store);
    report.text(questions, kills, seconds)
}

/// The two processes, and which of their runs were killed.
struct Clients {
    works: [Work; 2],
    running: [Option<Child>; 2],
    /// The number of each process's present run.
    run: [u32; 2],
    /// The process of each run there was.
    processes: Vec<u32>,
    killed: Vec<u32>,
}

impl Clients {
    fn new(url: &str, store: &Path, questions: u32) -> Self {
        let work = |from: u32, to: u32| Work {
            url: url.to_owned(),
            store: store.to_owned(),
            from: questions / 10 * from,
            to: questions / 10 * to,
        };
        let mut clients = Self {
            // What both ask, one asks first and the other last.
            works: [work(0, 6), work(4, 10)],
            running: [None, None],
            run: [0, 0],
            processes: Vec::new(),
            killed: Vec::new(),
        };
        clients.start(0);
        clients.start(1);
        clients
    }

    fn start(&mut self, which: usize) {
        let work = &self.works[which];
        let work = Work {
            // The query is sent and is no part of a request's key.
            url: format!("{}?run={}", work.url, self.processes.len()),
            store: work.store.clone(),
            ..*work
        };
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["soak::client", "--exact", "--nocapture"])
            .env(CLIENT, serde_json::to_string(&work).unwrap())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.run[which] = u32::try_from(self.processes.len()).unwrap();
        self.processes.push(child.id());
        self.running[which] = Some(child);
    }

    /// How many have not finished.
    fn look(&mut self) -> usize {
        for running in &mut self.running {
            if let Some(child) = running
                && let Some(status) = child.try_wait().unwrap()
            {
                assert!(status.success(), "a client failed: {status}");
                *running = None;
            }
        }
        self.running.iter().flatten().count()
    }

    /// Kills those of these that are still at work, or the other one, and starts them anew when all are down.
    fn kill(&mut self, whom: &[usize]) {
        self.look();
        let mut whom: Vec<usize> = whom
            .iter()
            .copied()
            .filter(|which| self.running[*which].is_some())
            .collect();
        if whom.is_empty() {
            whom.extend((0..2).filter(|which| self.running[*which].is_some()));
        }
        assert!(
            !whom.is_empty(),
            "questions are left, so somebody is at work"
        );
        for which in &whom {
            let mut child = self.running[*which].take().unwrap();
            child.kill().unwrap();
            child.wait().unwrap();
            self.killed.push(self.run[*which]);
        }
        whom.into_iter().for_each(|which| self.start(which));
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        for child in self.running.iter_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn every_question_has_its_answer(store: &Store, model: &ModelId, questions: u32) {
    for n in 0..questions {
        let request = about(&question(n));
        let response = store.get(&request.key(model)).unwrap();
        let answer = response.unwrap_or_else(|| panic!("question {n} has no answer"));
        assert_eq!(answer.answer, right(&request).0);
    }
    assert_eq!(store.totals().unwrap().responses, u64::from(questions));
}

/// A row of the audit.
#[derive(Debug, Clone)]
struct Row {
    key: [u8; 32],
    run: u32,
    outcome: String,
    status: Option<u16>,
    usage: [u64; 4],
    latency: Duration,
}

fn rows(store: &Store, processes: &[u32]) -> Vec<Row> {
    let reader = rusqlite::Connection::open(store.path()).unwrap();
    let mut rows = reader
        .prepare(
            "SELECT key, outcome, status, prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens,
                 coalesce(latency_ms, 0), run FROM attempts ORDER BY id",
        )
        .unwrap();
    let number = |row: &rusqlite::Row<'_>, column| row.get::<_, i64>(column).map(i64::unsigned_abs);
    rows.query_map([], |row| {
        // The label of a run begins with its process.
        let label: String = row.get(8)?;
        let process: u32 = label.split('-').next().unwrap().parse().unwrap();
        let run = processes.iter().rposition(|known| *known == process);
        Ok(Row {
            key: row.get(0)?,
            run: u32::try_from(run.unwrap()).unwrap(),
            outcome: row.get(1)?,
            status: row.get(2)?,
            usage: [
                number(row, 3)?,
                number(row, 4)?,
                number(row, 5)?,
                number(row, 6)?,
            ],
            latency: Duration::from_millis(number(row, 7)?),
        })
    })
    .unwrap()
    .map(|row| row.unwrap())
    .collect()
}

fn tokens(usage: Usage) -> [u64; 4] {
    [
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.cached_tokens,
        usage.reasoning_tokens,
    ]
}

/// The server's books beside the audit.
#[derive(Debug, Default)]
struct Books {
    calls: usize,
    rows: usize,
    /// Calls by what became of them, on both sides alike.
    agreed: BTreeMap<String, u64>,
    agreed_tokens: [u64; 4],
    /// Calls that the server saw and whose end the audit does not know: under way at a kill.
    unheard: Vec<Call>,
    unheard_tokens: [u64; 4],
    /// Rows of calls that never reached the server: written down, then killed.
    unsent: usize,
    /// Answers that came when the client had stopped waiting.
    late: usize,
    /// Good answers to a question that was answered well once more.
    again: Vec<Call>,
}

impl Books {
    /// Pairs every settled row with a call of the same run, key, outcome, status and tokens.
    fn compare(calls: &[Call], rows: &[Row], killed: &[u32]) -> Self {
        let mut books = Self {
            calls: calls.len(),
            rows: rows.len(),
            ..Self::default()
        };
        let mut served: HashMap<(u32, [u8; 32]), Vec<&Call>> = HashMap::new();
        for call in calls {
            let of_key = served.entry((call.run.unwrap(), *call.key.as_bytes()));
            of_key.or_default().push(call);
        }
        let mut interrupted: HashMap<(u32, [u8; 32]), usize> = HashMap::new();
        for row in rows {
            let key = (row.run, row.key);
            if row.outcome == "interrupted" {
                *interrupted.entry(key).or_default() += 1;
                continue;
            }
            let of_key = served.entry(key).or_default();
            let same = of_key.iter().position(|call| {
                call.does.outcome() == row.outcome
                    && call.does.status() == row.status
                    && tokens(call.usage) == row.usage
            });
            let late = || {
                (row.outcome == "transient" && row.latency >= TIMEOUT && !of_key.is_empty())
                    .then_some(0)
            };
            books.late += usize::from(same.is_none());
            let Some(pair) = same.or_else(late) else {
                panic!("the server knows nothing of {row:?}; it has {of_key:?}");
            };
            of_key.swap_remove(pair);
            *books.agreed.entry(row.outcome.clone()).or_default() += 1;
            add(&mut books.agreed_tokens, row.usage);
        }
        for (key, calls) in served {
            let open = interrupted.remove(&key).unwrap_or_default();
            assert!(calls.len() <= open, "calls without a row: {calls:?}");
            books.unsent += open - calls.len();
            for call in calls {
                add(&mut books.unheard_tokens, tokens(call.usage));
                books.unheard.push(call.clone());
            }
        }
        books.unsent += interrupted.into_values().sum::<usize>();
        let was_killed = |call: &Call| killed.contains(&call.run.unwrap());
        // Of each question, one good answer is kept; the others were lost in a kill. What a killed process asked may
        // reach the server after what the next one asks.
        let mut good: HashMap<&str, Vec<&Call>> = HashMap::new();
        for call in calls.iter().filter(|call| call.does.answers()) {
            good.entry(&call.about).or_default().push(call);
        }
        for mut calls in good.into_values() {
            calls.sort_by_key(|call| !was_killed(call));
            calls.pop();
            books.again.extend(calls.into_iter().cloned());
        }
        // Only what was under way at a kill is excused, and no more of it than can be under way.
        for lost in [&books.again, &books.unheard] {
            let mut by_run: BTreeMap<u32, usize> = BTreeMap::new();
            for call in lost {
                let run = call.run.unwrap();
                let about = || {
                    let calls: Vec<_> = calls.iter().filter(|c| c.about == call.about).collect();
                    let of = |row: &&Row| calls.iter().any(|c| c.key.as_bytes() == &row.key);
                    format!(
                        "{calls:#?}\n{:#?}",
                        rows.iter().filter(of).collect::<Vec<_>>()
                    )
                };
                assert!(
                    killed.contains(&run),
                    "run {run} was not killed: {}",
                    about()
                );
                *by_run.entry(run).or_default() += 1;
            }
            assert!(by_run.values().all(|n| *n <= CONCURRENCY), "{by_run:?}");
        }
        books
    }

    /// The store's own sums against the server's.
    fn check(&self, store: &Store) {
        let totals = store.totals().unwrap();
        let mut attempts = totals.attempts.clone();
        let interrupted = attempts.remove("interrupted").unwrap_or_default();
        assert_eq!(attempts, self.agreed);
        assert_eq!(tokens(totals.usage), self.agreed_tokens);
        assert_eq!(interrupted as usize, self.unheard.len() + self.unsent);
        assert_eq!(
            self.rows - self.unsent,
            self.calls,
            "a row for every call, and a call for every row"
        );
    }

    fn text(&self, questions: u32, kills: u32, seconds: f64) -> String {
        let mut out = String::new();
        let mut line = |text: String| {
            out.push_str(&text);
            out.push('\n');
        };
        line(format!(
            "{questions} questions, {} calls at the server, {} rows in the audit, {kills} kills, {seconds:.1} s",
            self.calls, self.rows
        ));
        line(format!(
            "agreed: {:?}; tokens in, out, cached, reasoning: {:?}",
            self.agreed, self.agreed_tokens
        ));
        line(format!(
            "under way at a kill: {} calls of {:?} tokens that the server saw, {} that it did not; answers too late: {}",
            self.unheard.len(),
            self.unheard_tokens,
            self.unsent,
            self.late
        ));
        for call in &self.unheard {
            line(format!(
                "  run {:?}, {}: {:?}",
                call.run, call.about, call.does
            ));
        }
        line(format!(
            "good answers paid for again because a kill came before they were on disk: {}",
            self.again.len()
        ));
        for call in &self.again {
            line(format!("  run {:?}, {}", call.run, call.about));
        }
        out
    }
}

fn add(sum: &mut [u64; 4], more: [u64; 4]) {
    sum.iter_mut()
        .zip(more)
        .for_each(|(sum, more)| *sum += more);
}

/// A number in `0..1` that depends on these bytes alone.
fn draw(parts: &[&[u8]]) -> f64 {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    let mut bytes = [0; 4];
    hasher.finalize_xof().fill(&mut bytes);
    f64::from(u32::from_le_bytes(bytes)) / (f64::from(u32::MAX) + 1.0)
}
