#![allow(missing_docs, clippy::print_stdout, clippy::unwrap_used)]
use moeplan_sim::{
    compile::*,
    cost::{analytic::Analytic, price::price},
    engine::run,
    spec::*,
};
use std::time::Instant;
fn main() {
    let hw = moeplan_sim::hardware::builtin("nd-a100-v4-80gb").unwrap();
    let model = Analytic::new(&hw).unwrap();
    let layer = LayerSpec::default().resolve(2048).unwrap();
    let tr = moeplan_traces::shipped("digits").unwrap();
    let s = tr.steps_of_layer(0).next().unwrap();
    let t = Instant::now();
    let rs = s
        .resample(
            &moeplan_traces::Shape {
                ranks: 2048,
                experts: 4096,
                tokens_per_rank: 16384,
                top_k: 2,
            },
            0,
        )
        .unwrap();
    println!("resample {:?}", t.elapsed());
    let t = Instant::now();
    let load = Load::new(&layer, 0.0, Padding::Dropless, &Routing::Step(&rs));
    println!("load {:?}", t.elapsed());
    let plan = Plan {
        encode: Encode::Sparse,
        all_to_all: AllToAll::Linear,
        layout: Layout::Flexible,
        padding: Padding::Dropless,
        forward_degree: 8,
        backward_degree: 8,
        adaptive_r: 1,
    };
    let t = Instant::now();
    let p = compile(Source {
        layer: &layer,
        gpus_per_node: 8,
        plan,
        load: &load,
        phase: Phase::Training,
    })
    .unwrap();
    println!("compile {:?} ops {}", t.elapsed(), p.ops.len());
    let t = Instant::now();
    let pr = price(&p, &model);
    println!("price {:?}", t.elapsed());
    let t = Instant::now();
    let pr2 = price(&p, &model);
    println!("price again {:?} {}", t.elapsed(), pr == pr2);
    let t = Instant::now();
    let (tl, st) = run(&p, &pr, &hw.gpu.contention);
    println!("run {:?} {:?}", t.elapsed(), st);
    let t = Instant::now();
    let m = p.peak_memory(3).0;
    println!("mem {:?} {m} {}", t.elapsed(), tl.step_time());
}
