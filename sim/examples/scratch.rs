#![allow(clippy::all, missing_docs, clippy::print_stdout, clippy::unwrap_used)]
use moeplan_sim::compile::{Load, Plan, Routing};
use moeplan_sim::cost::CostModel;
use moeplan_sim::cost::analytic::Analytic;
use moeplan_sim::hardware::Hardware;
use moeplan_sim::policy::{best, candidates};
use moeplan_sim::simulate::*;
use moeplan_sim::spec::*;
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let text = std::fs::read_to_string("sim/src/hardware/presets/nd-a100-v4-80gb.toml").unwrap();
    let mut hw = moeplan_sim::hardware::builtin("nd-a100-v4-80gb").unwrap();
    let _ = text;
    if let Ok(t) = std::env::var("HW") {
        let over: Vec<(String, f64)> = t
            .split(',')
            .map(|p| {
                let (a, b) = p.split_once('=').unwrap();
                (a.to_string(), b.parse().unwrap())
            })
            .collect();
        for (k, v) in over {
            match k.as_str() {
                "half" => hw.network.congestion.half_nodes = v,
                "exp" => hw.network.congestion.exponent = v,
                "pen" => hw.network.congestion.peer_penalty = v,
                "eff" => hw.software.gemm_efficiency = v,
                "nic" => hw.collectives.nic.efficiency = v,
                "peerhalf" => hw.collectives.nic.peer_half = v,
                "l2" => hw.gpu.gemm.l2_gbps = v,
                "launch" => hw.host.launch_us = v,
                "coll" => hw.host.collective_us = v,
                "peer" => hw.host.peer_us = v,
                "cbg" => hw.gpu.contention.nic_beside_kernel = v,
                "gbc" => hw.gpu.contention.gemm_beside_nic = v,
                "mbc" => hw.gpu.contention.memory_beside_nic = v,
                "rp" => hw.collectives.nic.remote_peer_us = v,
                "base" => hw.collectives.nic.base_us = v,
                _ => panic!(),
            }
        }
    }
    let model = Analytic::new(&hw).unwrap();
    let run = |layer: &LayerSpec, gpus: u64, s: &Strategy| -> Step {
        let l = layer.resolve(gpus).unwrap();
        let sc = Scenario {
            layer: &l,
            gpus_per_node: 8,
            memory_bytes: hw.memory_bytes(),
            reserved_bytes: hw.reserved_bytes(),
            model: &model,
            phase: Phase::Training,
        };
        let load = Load::new(&l, layer.capacity_factor, s.padding, &Routing::Balanced);
        best(&sc, &candidates(s, &l).unwrap(), &load).unwrap()
    };
    let show = |name: &str, s: &Step| {
        print!(
            "{name:28} {:9.2} ms a2a {:9.2} comp {:8.2} exp {:8.2} mem {:6.2} {} |",
            s.time.as_ms_f64(),
            s.all_to_all.as_ms_f64(),
            s.compute.as_ms_f64(),
            s.exposed_communication.as_ms_f64(),
            s.memory_bytes as f64 / (1u64 << 30) as f64,
            s.plan
        );
        for st in &s.stages {
            print!(" {} {:.2}", st.stage.name(), st.busy.as_ms_f64());
        }
        println!();
    };
    if args.get(1).map(|s| s == "t6").unwrap_or(false) {
        for gpus in [16u64, 64, 256] {
            let mut sums = vec![[0f64; 2]; 8];
            let mut n = 0;
            for eg in [0.5, 1.0, 2.0] {
                for d in [1024u64, 2048, 4096] {
                    for h in [1024u64, 2048, 4096] {
                        for t in [4096u64, 16384, 65536] {
                            let layer = LayerSpec {
                                tokens_per_step: t,
                                model_dim: d,
                                hidden_dim: h,
                                experts: Experts::PerGpu(eg),
                                ..LayerSpec::default()
                            };
                            let mut times = vec![];
                            for a in [AllToAll::Linear, AllToAll::TwoDh] {
                                for deg in [1u64, 2, 4, 8] {
                                    let s = Strategy {
                                        all_to_all: Choice::Fixed(a),
                                        pipeline_degree: Choice::Fixed(deg),
                                        adaptive_r: Choice::Fixed(1),
                                        layout: Layout::Flexible,
                                        encode: Encode::Sparse,
                                        ..Strategy::fairseq()
                                    };
                                    times.push(run(&layer, gpus, &s).time.as_ms_f64());
                                }
                            }
                            let b = times.iter().cloned().fold(f64::MAX, f64::min);
                            for (i, t) in times.iter().enumerate() {
                                let g = t / b - 1.0;
                                sums[i][0] += g;
                                sums[i][1] = sums[i][1].max(g);
                            }
                            n += 1;
                        }
                    }
                }
            }
            println!(
                "{gpus} n={n}: {}",
                sums.iter()
                    .map(|s| format!("{:.0}/{:.0}", s[0] / n as f64 * 100., s[1] * 100.))
                    .collect::<Vec<_>>()
                    .join("  ")
            );
        }
        println!("pub 16: 20/60 2/32 2/50 11/176 | 101/149 98/139 100/142 106/184");
        println!("pub 64: 13/55 1/23 5/42 15/161 | 28/70 25/54 27/41 34/109");
        println!("pub 256: 20/100 27/160 54/317 107/599 | 12/73 20/139 34/193 11/182");
        return;
    }
    let t2 = LayerSpec {
        tokens_per_step: 65536,
        model_dim: 4096,
        hidden_dim: 4096,
        ..LayerSpec::default()
    };
    let tut1 = Strategy {
        pipeline_degree: Choice::Fixed(1),
        all_to_all: Choice::Fixed(AllToAll::Linear),
        adaptive_r: Choice::Fixed(1),
        ..Strategy::tutel()
    };
    for g in [16, 256] {
        let s = run(&t2, g, &tut1);
        show(&format!("table2 {g}"), &s);
    }
    println!("  published 560.9 = 371.8 + 189.1; 866.4 = 386.3 + 491.3");
    for g in [16u64, 64, 256, 512, 1024, 2048] {
        let mut prev: Option<f64> = None;
        let mut base = 0.0;
        for mut s in Strategy::ladder() {
            let l = LayerSpec::default();
            if s.name == "+ adaptive pipelining" {
                s.adaptive_r = Choice::Fixed(1);
            }
            let st = run(&l, g, &s);
            show(&format!("{g} {}", s.name), &st);
            let t = st.time.as_ms_f64();
            if base == 0.0 {
                base = t;
            }
            println!(
                "      step x{:.2} total x{:.2}",
                prev.map_or(1.0, |p| p / t),
                base / t
            );
            prev = Some(t);
        }
    }
    for t in [4096u64, 16384, 32768] {
        let l = LayerSpec {
            tokens_per_step: t,
            model_dim: 4096,
            hidden_dim: 4096,
            ..LayerSpec::default()
        };
        let a = run(&l, 16, &Strategy::fairseq());
        let b = run(&l, 16, &tut1);
        println!(
            "mem {t}: {:.2} {:.2}",
            a.memory_bytes as f64 / (1u64 << 30) as f64,
            b.memory_bytes as f64 / (1u64 << 30) as f64
        );
    }
    println!("  published 3.7/2.9 16.3/4.0 57.9/5.7");
    let _ = model.host_launch();
}
