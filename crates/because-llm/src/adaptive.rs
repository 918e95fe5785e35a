mod controller;
mod gate;
#[cfg(test)]
mod simulation;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::{
    BoxFuture, ChatError, ChatModel, ChatRequest, ChatResponse, Handed, ModelId, Result, departure,
};

use controller::{Controller, Outcome};
use gate::Gate;

/// Lets as many calls be under way at once as the server bears, and finds out how many that are.
///
/// It begins with a few and doubles until something stands against it: refusals (429, 503), timeouts and broken
/// connections, or latencies that show a queue at the server. Then it goes back and stays just below, looking from time to
/// time whether there is room for more. What counts is judged over a window of calls, so one bad moment, which takes many
/// calls with it, is one bad moment. A server that asks to be left alone is left alone by everybody. It never grows while
/// nobody is waiting.
///
/// Who comes first goes first; a caller that goes away gives its place back. It repeats nothing: a refusal goes through to
/// [`Retrying`](crate::Retrying) outside, whose next attempt queues anew.
///
/// ```
/// use because_llm::{Adaptive, ChatModel, ChatRequest, Message, Offline};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), because_llm::ChatError> {
/// let model = Adaptive::new(Offline, 256).start(16);
/// model.chat(&ChatRequest::new(vec![Message::user("Say something about sand.")])).await?;
/// assert_eq!(model.concurrency().limit(), 16);
///
/// let always_eight = Adaptive::fixed(Offline, 8);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Adaptive<M> {
    inner: M,
    min: usize,
    start: usize,
    max: usize,
    longest_pause: Duration,
    gate: Arc<Gate>,
}

/// What an [`Adaptive`] is doing now, for progress and metrics. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Concurrency(Arc<Gate>);

impl Concurrency {
    /// How many calls may be under way at once now.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.0.look(|controller, _| controller.limit())
    }

    /// How many are.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.0.look(|controller, _| controller.in_flight())
    }

    /// How many wait for a place.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.0.look(|_, waiting| waiting)
    }

    /// How often the limit was lowered.
    #[must_use]
    pub fn decreases(&self) -> u64 {
        self.0.look(|controller, _| controller.decreases())
    }

    /// For how much longer nobody may begin, because the server asked for it.
    #[must_use]
    pub fn pause(&self) -> Option<Duration> {
        let now = Instant::now();
        let until = self.0.look(|controller, _| controller.pause(now))?;
        Some(until.saturating_duration_since(now))
    }
}

impl<M: ChatModel> Adaptive<M> {
    /// At most `max` calls at once; at first 8, at least 1, and nobody is made to wait longer than a minute at a time
    /// because the server asked for it.
    #[must_use]
    pub fn new(inner: M, max: usize) -> Self {
        Self {
            inner,
            min: 1,
            start: 8,
            max,
            longest_pause: Duration::from_secs(60),
            gate: Arc::default(),
        }
        .rebuilt()
    }

    /// Always so many, and one if that is 0: for a server whose limit is known, or a model in this process. It still
    /// pauses when it is asked to.
    #[must_use]
    pub fn fixed(inner: M, calls: usize) -> Self {
        Self::new(inner, calls).min(calls)
    }

    /// Never fewer than this, whatever happens.
    #[must_use]
    pub fn min(mut self, calls: usize) -> Self {
        self.min = calls;
        self.rebuilt()
    }

    /// So many at first.
    #[must_use]
    pub fn start(mut self, calls: usize) -> Self {
        self.start = calls;
        self.rebuilt()
    }

    /// Never more than this.
    #[must_use]
    pub fn max(mut self, calls: usize) -> Self {
        self.max = calls;
        self.rebuilt()
    }

    /// The longest that everybody waits at a time because the server asked for it.
    #[must_use]
    pub fn longest_pause(mut self, pause: Duration) -> Self {
        self.longest_pause = pause;
        self
    }

    /// What it is doing now. Taken after everything is set.
    #[must_use]
    pub fn concurrency(&self) -> Concurrency {
        Concurrency(Arc::clone(&self.gate))
    }

    fn rebuilt(mut self) -> Self {
        let controller = Controller::new(self.min, self.start, self.max);
        self.gate = Arc::new(Gate::new(controller));
        self
    }

    /// What a result tells of the load, and how long everybody should wait.
    fn read(&self, result: &Result<ChatResponse>) -> (Outcome, Option<Duration>) {
        let (outcome, pause) = match result {
            Ok(response) => (
                Outcome::Answered,
                response
                    .rate_limits
                    .and_then(|limits| limits.exhausted_for()),
            ),
            Err(ChatError::Overloaded {
                retry_after,
                rate_limits,
                ..
            }) => match rate_limits
                .as_ref()
                .and_then(|limits| limits.exhausted_for())
            {
                // So many a minute are used up: that says nothing of how many at once.
                Some(reset) => (Outcome::Refused, Some(retry_after.unwrap_or(reset))),
                None => (Outcome::Overloaded, *retry_after),
            },
            Err(ChatError::Transient { .. }) => (Outcome::Failed, None),
            Err(ChatError::Truncated { .. }) => (Outcome::Answered, None),
            Err(_) => (Outcome::Refused, None),
        };
        let pause = pause.map(|pause| pause.min(self.longest_pause));
        (outcome, pause.filter(|pause| !pause.is_zero()))
    }
}

impl<M: ChatModel> ChatModel for Adaptive<M> {
    fn chat<'a>(&'a self, request: &'a ChatRequest) -> BoxFuture<'a, Result<ChatResponse>> {
        self.chat_with(request, Handed::default())
    }

    fn chat_with<'a>(
        &'a self,
        request: &'a ChatRequest,
        handed: Handed,
    ) -> BoxFuture<'a, Result<ChatResponse>> {
        Box::pin(async move {
            departure::held();
            let place = self.gate.enter().await;
            departure::departs();
            let result = self.inner.chat_with(request, handed).await;
            let (outcome, pause) = self.read(&result);
            place.leave(outcome, pause);
            result
        })
    }

    fn id(&self) -> ModelId {
        self.inner.id()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::future::Future;
    use std::sync::Mutex;
    use std::task::{Context, Poll};

    use futures_channel::oneshot;
    use futures_util::FutureExt;
    use futures_util::task::noop_waker;

    use super::*;
    use crate::{Allowance, Message, RateLimits};

    /// Answers when it is told to, and remembers who came in which order.
    #[derive(Default)]
    struct Told {
        came: Mutex<Vec<String>>,
        answers: Mutex<VecDeque<oneshot::Sender<Result<ChatResponse>>>>,
    }

    impl Told {
        fn answer(&self, result: Result<ChatResponse>) {
            let sender = self.answers.lock().unwrap().pop_front().unwrap();
            let _ = sender.send(result);
        }

        fn came(&self) -> String {
            self.came.lock().unwrap().concat()
        }
    }

    impl ChatModel for Told {
        fn chat<'a>(&'a self, request: &'a ChatRequest) -> BoxFuture<'a, Result<ChatResponse>> {
            let (sender, receiver) = oneshot::channel();
            let content = request.messages[0].content.clone();
            self.came.lock().unwrap().push(content);
            self.answers.lock().unwrap().push_back(sender);
            Box::pin(receiver.map(|answer| answer.unwrap()))
        }
    }

    fn requests(names: &str) -> Vec<ChatRequest> {
        let ask = |name: char| ChatRequest::new(vec![Message::user(name)]);
        names.chars().map(ask).collect()
    }

    fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
        std::pin::Pin::new(future).poll(&mut Context::from_waker(&noop_waker()))
    }

    fn overloaded(retry_after: Option<Duration>, rate_limits: Option<RateLimits>) -> ChatError {
        ChatError::Overloaded {
            message: "busy".into(),
            retry_after,
            rate_limits: rate_limits.map(Box::new),
        }
    }

    #[test]
    fn who_comes_first_goes_first_and_who_goes_away_gives_the_place_back() {
        let told = Told::default();
        let model = Adaptive::fixed(&told, 2);
        let requests = requests("abcdef");
        let mut calls: Vec<_> = requests.iter().map(|request| model.chat(request)).collect();
        for call in &mut calls {
            assert!(poll(call).is_pending());
        }
        let concurrency = model.concurrency();
        assert_eq!((told.came().as_str(), concurrency.waiting()), ("ab", 4));
        told.answer(Ok(ChatResponse::default()));
        assert!(poll(&mut calls[0]).is_ready());
        // The place is given to the third already; it goes away before it takes it, and another goes away in the queue.
        drop(calls.remove(4));
        drop(calls.remove(2));
        assert_eq!((concurrency.in_flight(), concurrency.waiting()), (2, 1));
        for call in &mut calls[1..] {
            assert!(poll(call).is_pending());
        }
        assert_eq!(told.came(), "abd");
        calls.clear();
        assert_eq!((concurrency.in_flight(), concurrency.waiting()), (0, 0));
        assert_eq!(concurrency.limit(), 2);
    }

    #[tokio::test]
    async fn when_the_server_asks_to_be_left_alone_everybody_waits() {
        let short = Duration::from_millis(60);
        let spent = RateLimits {
            requests: None,
            tokens: Some(Allowance {
                remaining: Some(0),
                resets_in: Some(short),
                ..Allowance::default()
            }),
        };
        let told = Told::default();
        let model = Adaptive::fixed(&told, 2);
        let requests = requests("abcde");
        for refusal in [
            Err(overloaded(Some(short), None)),
            Err(overloaded(None, Some(spent))),
            Ok(ChatResponse {
                rate_limits: Some(spent),
                ..ChatResponse::default()
            }),
        ] {
            let mut first = model.chat(&requests[0]);
            assert!(poll(&mut first).is_pending());
            told.answer(refusal);
            let _ = poll(&mut first);
            let begun = Instant::now();
            let came = told.came().len();
            let mut others: Vec<_> = requests.iter().map(|request| model.chat(request)).collect();
            for call in &mut others {
                assert!(poll(call).is_pending());
            }
            assert_eq!(told.came().len(), came, "nobody goes while the pause lasts");
            // The one who keeps the time goes away; the next one does.
            drop(others.remove(0));
            let all = futures_util::future::join_all(others);
            let answers = async {
                for _ in 0..4 {
                    while told.answers.lock().unwrap().is_empty() {
                        futures_timer::Delay::new(Duration::from_millis(1)).await;
                    }
                    told.answer(Ok(ChatResponse::default()));
                }
            };
            futures_util::future::join(all, answers).await;
            let took = begun.elapsed();
            assert!((45..5000).contains(&took.as_millis()), "{took:?}");
        }
        assert_eq!(model.concurrency().decreases(), 0);
    }

    #[tokio::test]
    async fn a_server_that_refuses_is_found_out_through_the_whole_wrapper() {
        struct Narrow(std::sync::atomic::AtomicUsize);
        impl ChatModel for Narrow {
            fn chat<'a>(&'a self, _: &'a ChatRequest) -> BoxFuture<'a, Result<ChatResponse>> {
                use std::sync::atomic::Ordering::SeqCst;
                Box::pin(async move {
                    let result = if self.0.fetch_add(1, SeqCst) < 5 {
                        futures_timer::Delay::new(Duration::from_millis(2)).await;
                        Ok(ChatResponse::default())
                    } else {
                        Err(overloaded(None, None))
                    };
                    self.0.fetch_sub(1, SeqCst);
                    result
                })
            }
        }
        let model = Adaptive::new(Narrow(Default::default()), 64);
        let request = ChatRequest::default();
        let concurrency = model.concurrency();
        let calls = (0..2000).map(|_| async {
            let _ = model.chat(&request).await;
            Ok(concurrency.limit())
        });
        let mut limits = Vec::new();
        crate::drive(calls, 100, &crate::Stop::default(), |limit| {
            limits.push(limit)
        })
        .await
        .unwrap();
        let settled = &limits[1000..];
        let mean = settled.iter().sum::<usize>() as f64 / settled.len() as f64;
        // On a busy machine, latencies of milliseconds say little; the simulation is strict.
        assert!((2.5..6.5).contains(&mean), "{mean}");
        assert!(concurrency.decreases() > 0);
        assert_eq!(concurrency.in_flight(), 0);
    }
}
