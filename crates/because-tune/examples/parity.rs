//! temporary
use std::path::Path;
use because_tune::*;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    match a[1].as_str() {
        "train" => { // base tokens init out steps batch accum seq
            let n = |i: usize| a[i].parse::<usize>().unwrap();
            let c = TrainConfig { max_steps: Some(n(6) as u64), batch_size: n(7), accumulation: n(8), learning_rate: 1e-3, warmup_steps: 2, shuffle: false, max_length: 4096, ..Default::default() };
            let mut losses = vec![]; let mut norms = vec![]; let mut best = 0f64; let mut secs = vec![];
            let mut t = Trainer::new(c);
            if a[4] != "-" { t = t.init_adapter(&a[4]); }
            let s = t.run(Path::new(&a[2]), &TrainSet::read(Path::new(&a[3])).unwrap(), Path::new(&a[5]), &mut |e| if let TrainEvent::Step(r) = e { losses.push(r.loss); norms.push(r.grad_norm); secs.push(r.seconds); best = best.max(r.tokens as f64 / r.seconds); }).unwrap();
            println!("{{\"losses\":{losses:?},\"grad_norms\":{norms:?},\"best\":{best},\"secs\":{secs:?},\"summary\":{}}}", serde_json::to_string(&s).unwrap());
        }
        "tiny" => { // textfile out steps
            let texts: Vec<String> = std::fs::read_to_string(&a[2]).unwrap().lines().map(String::from).collect();
            let t0 = std::time::Instant::now();
            let s = TinyBase::new().steps(a[4].parse().unwrap()).build(texts, Path::new(&a[3]), &mut |e| if let TrainEvent::Step(r) = e { if r.step % 25 == 1 { eprintln!("{} {:.4} {:.3}s", r.step, r.loss, r.seconds) } }).unwrap();
            println!("{} total {:?}", serde_json::to_string(&s).unwrap(), t0.elapsed());
        }
        "gen" => { // base adapter prompt max temp
            let m = TunedModel::load(Path::new(&a[2]), (a[3] != "-").then(|| Path::new(&a[3]))).unwrap();
            let d = Decoding { temperature: a[6].parse().unwrap(), ..Decoding::greedy(a[5].parse().unwrap()) };
            println!("{}", serde_json::to_string(&m.generate_batch(&[vec![because_core::Message::new("user", a[4].as_str())]], &d).unwrap()).unwrap());
        }
        "logits" => { // base adapter tokens batch out(json f32)
            let m = TunedModel::load(Path::new(&a[2]), (a[3] != "-").then(|| Path::new(&a[3]))).unwrap();
            let rows: Vec<Vec<u32>> = std::fs::read_to_string(&a[4]).unwrap().lines().take(a[5].parse().unwrap()).map(|l| serde_json::from_value(serde_json::from_str::<serde_json::Value>(l).unwrap()["input_ids"].clone()).unwrap()).collect();
            std::fs::write(&a[6], serde_json::to_string(&m.logits(&rows).unwrap()).unwrap()).unwrap();
        }
        "continue" => { // base tokens batch prompt new
            let m = TunedModel::load(Path::new(&a[2]), None).unwrap();
            let (b, p): (usize, usize) = (a[4].parse().unwrap(), a[5].parse().unwrap());
            let rows: Vec<Vec<u32>> = std::fs::read_to_string(&a[3]).unwrap().lines().take(b).map(|l| { let v: Vec<u32> = serde_json::from_value(serde_json::from_str::<serde_json::Value>(l).unwrap()["input_ids"].clone()).unwrap(); v[..p].to_vec() }).collect();
            println!("{}", serde_json::to_string(&m.continue_tokens(&rows, &Decoding::greedy(a[6].parse().unwrap())).unwrap()).unwrap());
        }
        _ => panic!(),
    }
}
