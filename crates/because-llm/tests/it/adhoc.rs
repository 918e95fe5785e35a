use because_llm::*;
use serde_json::json;
use std::time::{Duration, Instant};
use crate::server::{Server, says};

#[tokio::test]
#[ignore]
async fn real() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().join("llm.sqlite")).unwrap();
    let bare = OpenAi::new("tiny").base_url("http://127.0.0.1:18431/v1").build().unwrap();
    let schema = json!({"type":"object","properties":{"summary":{"type":"string","maxLength":60},"stars":{"type":"integer","minimum":1,"maximum":5}},"required":["summary","stars"],"additionalProperties":false});
    let long = ChatRequest::new(vec![Message::user("word ".repeat(30000))]);
    println!("LONG {:?}", bare.chat(&long).await.unwrap_err());
    let cut = ChatRequest::new(vec![Message::user("hi")]).schema("s", schema.clone()).sampling(Sampling{max_tokens:Some(8),..Default::default()});
    println!("CUT {:?}", bare.chat(&cut).await);
    let model = ModelStack::new(bare).store(store.clone()).concurrency(4).build().unwrap();
    println!("CUT {:?}", model.chat(&cut).await.map_err(|e| e.to_string()));
    let begun = Instant::now();
    let requests: Vec<_> = (0..40).map(|n| ChatRequest::new(vec![Message::system("Be brief"), Message::user(format!("rate {n}"))]).schema("s", schema.clone()).seed(n).sampling(Sampling{max_tokens:Some(2000),temperature:Some(0.8),..Default::default()})).collect();
    let mut ok=0; let mut sample=None;
    for r in futures_util::future::join_all(requests.iter().map(|r| model.chat(r))).await { match r { Ok(r) => { ok+=1; sample=Some(r) } Err(e) => println!("ERR {e}") } }
    println!("OK {ok}/40 in {:?}; {:?}", begun.elapsed(), sample);
    store.flush().unwrap();
    println!("{}", serde_json::to_string_pretty(&store.totals().unwrap()).unwrap());
}

struct Instantly;
impl ChatModel for Instantly {
    fn chat<'a>(&'a self, _: &'a ChatRequest) -> BoxFuture<'a, Result<ChatResponse>> {
        Box::pin(std::future::ready(Ok(ChatResponse{answer:"{\"stars\":4,\"summary\":\"x\"}".into(),..Default::default()})))
    }
}
fn cpu() -> f64 { let s=std::fs::read_to_string("/proc/self/stat").unwrap(); let f: Vec<&str>=s.rsplit(')').next().unwrap().split_whitespace().collect(); (f[11].parse::<f64>().unwrap()+f[12].parse::<f64>().unwrap())/100.0 }

#[tokio::test]
#[ignore]
async fn speed() {
    let schema = json!({"type":"object","properties":{"summary":{"type":"string"},"stars":{"type":"integer"}},"required":["summary","stars"]});
    for (name, serial) in [("64 at once", false), ("one at a time", true)] {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().join("llm.sqlite")).unwrap();
    let model = ModelStack::new(Instantly).store(store.clone()).concurrency(64).build().unwrap();
    let n = if serial {3000} else {20000};
    let requests: Vec<_> = (0..n).map(|n| ChatRequest::new(vec![Message::user(format!("{n} {}", "rate ".repeat(300)))]).schema("s", schema.clone())).collect();
    for pass in ["cold", "warm"] {
        let (b, c) = (Instant::now(), cpu());
        drive(requests.iter().map(|r| model.chat(r)), if serial {1} else {64}, &Stop::default(), |_| {}).await.unwrap();
        println!("{name} {pass}: {:.1} us wall, {:.1} us cpu per call", b.elapsed().as_secs_f64()*1e6/n as f64, (cpu()-c)*1e6/n as f64);
    }
    store.close().unwrap();
    }
    let _ = (Duration::ZERO, Server::run([says("x")]).await);
}
