//! Cases that can be solved by hand; the algebra is in the comments.

use moeplan_sim::compile::{Capacity, Load, Payload, Routing, all_to_all};
use moeplan_sim::cost::nccl::{CollectiveKind, Nccl, port_bound};
use moeplan_sim::cost::provenance::Provenance;
use moeplan_sim::cost::{CostModel, Exchange};
use moeplan_sim::engine::{Concurrency, Contention, PricedOp, Resource, RunStats, run};
use moeplan_sim::ir::{
    Elementwise, Expert, OpId, OpKind, Pass, PerRank, Program, ProgramBuilder, Scope, Stream,
    Timeline, Traffic, Transport, Work,
};
use moeplan_sim::network::fabric::{Fabric, LinkClass};
use moeplan_sim::network::{drain, traffic};
use moeplan_sim::spec::{AllToAll, DType, Encode, Experts, Gate, LayerSpec, Padding};
use moeplan_sim::units::{Bandwidth, Time};
use moeplan_tests::{Testbed, plan, small_layer};
use moeplan_traces::RoutingStep;

/// An operation of a hand-made program: stream, kind, resource, time alone by rank and host time in
/// nanoseconds, and the operations it waits for.
struct Hand {
    stream: Stream,
    kind: OpKind,
    resource: Resource,
    alone_ns: Vec<u64>,
    host_ns: u64,
    after: Vec<u32>,
}

fn kernel(alone_ns: u64) -> Hand {
    let kind = OpKind::Elementwise {
        what: Elementwise::Bias(Expert::Up),
        elements: PerRank::Same(1),
    };
    Hand {
        stream: Stream::Compute,
        kind,
        resource: Resource::Gemm,
        alone_ns: vec![alone_ns],
        host_ns: 0,
        after: Vec::new(),
    }
}

fn collective(alone_ns: u64) -> Hand {
    let kind = OpKind::AllGather {
        scope: Scope::World,
        bytes: 1,
    };
    Hand {
        stream: Stream::Communication,
        kind,
        resource: Resource::Nic,
        ..kernel(alone_ns)
    }
}

impl Hand {
    fn after(self, ops: &[u32]) -> Hand {
        let after = ops.to_vec();
        Hand { after, ..self }
    }

    fn host(self, host_ns: u64) -> Hand {
        Hand { host_ns, ..self }
    }

    fn by_rank(self, alone_ns: &[u64]) -> Hand {
        let alone_ns = alone_ns.to_vec();
        Hand { alone_ns, ..self }
    }
}

/// Half speed for GEMMs beside a NIC collective, three quarters for the collective.
const CONTENTION: Contention = Contention {
    gemm_beside_nic: 0.5,
    memory_beside_nic: 0.5,
    nic_beside_kernel: 0.75,
    gemm_beside_nvlink: 0.25,
    memory_beside_nvlink: 0.25,
    nvlink_beside_kernel: 0.75,
};

fn play(world_size: usize, ops: Vec<Hand>) -> (Timeline, RunStats) {
    let mut builder = ProgramBuilder::new(world_size, world_size, DType::Fp16);
    let mut priced = Vec::new();
    let mut after = Vec::new();
    for op in ops {
        builder.push(op.stream, op.kind, &[], &[]);
        let alone: Vec<Time> = op.alone_ns.iter().map(|&ns| Time::from_ns(ns)).collect();
        priced.push(PricedOp {
            alone: match alone[..] {
                [only] => PerRank::Same(only),
                _ => PerRank::Each(alone),
            },
            host: Time::from_ns(op.host_ns),
            resource: op.resource,
            provenance: Provenance::Measured,
        });
        after.push(op.after);
    }
    let mut program = builder.finish();
    for (op, after) in program.ops.iter_mut().zip(after) {
        op.after = after.into_iter().map(OpId).collect();
    }
    let concurrency = Concurrency {
        contention: &CONTENTION,
        kernels_keep_collectives_out: true,
    };
    run(&program, &priced, concurrency)
}

/// Plays `ops` and checks `(start, end)` in nanoseconds of every operation on every rank.
fn check(world_size: usize, ops: Vec<Hand>, expected: &[&[(u64, u64)]]) {
    let (timeline, stats) = play(world_size, ops);
    assert_eq!(stats.rows, expected.len());
    for (rank, expected) in expected.iter().enumerate() {
        let spans: Vec<(u64, u64)> = timeline
            .rank(rank)
            .iter()
            .map(|span| (span.start.as_ns(), span.end.as_ns()))
            .collect();
        assert_eq!(spans, *expected, "rank {rank}");
    }
}

#[test]
fn a_serial_chain_takes_the_sum_of_its_parts() {
    let ops = vec![
        kernel(10),
        collective(20).after(&[0]),
        kernel(30).after(&[1]),
    ];
    check(4, ops, &[&[(0, 10), (10, 30), (30, 60)]]);
}

#[test]
fn two_streams_that_overlap_slow_each_other_down_and_finish_exactly() {
    // The GEMM joins at 20, when the collective has 45 of 65 ns left. At rate 3/4 they take 60, to
    // 80, when the GEMM has done 60 / 2 = 30 of 60 ns; its last 30 run alone, to 110.
    let ops = vec![collective(65).host(20), kernel(60)];
    check(4, ops, &[&[(0, 80), (20, 110)]]);
}

#[test]
fn a_collective_waits_until_a_running_kernel_leaves_the_gpu() {
    // The collective is there at 20, beside a kernel that fills the GPU until 60. It then goes before
    // the second kernel, which came later: both run, the kernel's 30 ns at 1/2 to 120, when the
    // collective has done 45 of 60; its last 15 run alone, to 135.
    let ops = vec![kernel(60).host(20), collective(60), kernel(30)];
    check(4, ops, &[&[(0, 60), (60, 135), (60, 120)]]);
    // Ready at the same moment, the kernel of the stream that just ended one goes first.
    let ops = vec![kernel(20), collective(90).after(&[0]), kernel(40)];
    check(4, ops, &[&[(0, 20), (60, 150), (20, 60)]]);
    // Two ranks: the one whose kernel ends later decides for both.
    let ops = vec![kernel(0).by_rank(&[30, 50]).host(20), collective(60)];
    check(2, ops, &[&[(0, 30), (50, 110)], &[(0, 50), (50, 110)]]);
}

#[test]
fn what_overlaps_nothing_runs_at_full_speed() {
    // The kernel ends when the collective starts.
    let ops = vec![kernel(60), collective(60).after(&[0])];
    check(4, ops, &[&[(0, 60), (60, 120)]]);
}

#[test]
fn a_collective_starts_when_its_last_participant_arrives() {
    let ops = vec![
        kernel(0).by_rank(&[10, 40, 20]),
        collective(5).after(&[0]),
        kernel(1).after(&[1]),
    ];
    let rest = [(40, 45), (45, 46)];
    let rank = |end| [(0, end), rest[0], rest[1]];
    check(3, ops, &[&rank(10), &rank(40), &rank(20)]);
}

#[test]
fn a_collective_of_a_group_waits_for_its_group_only() {
    // Groups {0, 2} and {1, 3}: the first meets at 30, the second at 20.
    let mut ops = vec![
        kernel(0).by_rank(&[10, 20, 30, 15]),
        collective(5).after(&[0]),
    ];
    ops[1].kind = OpKind::AllGather {
        scope: Scope::Strided { size: 2, stride: 2 },
        bytes: 1,
    };
    check(
        4,
        ops,
        &[
            &[(0, 10), (30, 35)],
            &[(0, 20), (20, 25)],
            &[(0, 30), (30, 35)],
            &[(0, 15), (20, 25)],
        ],
    );
}

#[test]
fn kernels_shorter_than_their_launch_are_bound_by_the_host() {
    // The host needs 10 ns a launch, so kernel i starts at 10 i however short it is.
    let ops = (0..4).map(|_| kernel(1).host(10)).collect();
    check(4, ops, &[&[(0, 1), (10, 11), (20, 21), (30, 31)]]);
    // And kernels longer than their launch are not.
    let ops = (0..3).map(|_| kernel(20).host(10)).collect();
    check(4, ops, &[&[(0, 20), (20, 40), (40, 60)]]);
}

#[test]
fn the_capacity_synchronisation_stops_the_host() {
    // Without it the third kernel would be issued at 3 * 8 = 24 and start at 45 behind the second.
    // With it the host starts again at 40: the kernels are issued at 40 and 48.
    let sync = Hand {
        kind: OpKind::CapacitySync,
        ..collective(30)
    };
    let ops = vec![
        kernel(10).host(8),
        sync.after(&[0]).host(8),
        kernel(5).host(8),
        kernel(5).host(8),
    ];
    check(4, ops, &[&[(0, 10), (10, 40), (40, 45), (48, 53)]]);
}

fn gb(gigabytes: f64) -> Bandwidth {
    Bandwidth::from_bytes_per_second(gigabytes * 1e9).unwrap()
}

#[test]
fn a_balanced_all_to_all_takes_the_bytes_of_a_port_over_its_rate() {
    // 4 nodes of 8: 24 remote peers of 1 MB at 25 GB/s are 960 us; the 7 local MB at 300 GB/s run
    // beside them.
    let fabric = Fabric::new(32, 8, gb(300.0), gb(25.0)).unwrap();
    let drained = drain(&fabric, &traffic::Traffic::uniform(1_000_000)).unwrap();
    assert_eq!(drained.makespan, Time::from_us(960));
    assert_eq!(drained.finish, vec![Time::from_us(960); 32]);
    let limit = drained.bottleneck.map(|link| link.class);
    assert!(matches!(limit, Some(LinkClass::NicOut | LinkClass::NicIn)));
    // One node: 7 MB at 300 GB/s.
    let fabric = Fabric::new(8, 8, gb(300.0), gb(25.0)).unwrap();
    let drained = drain(&fabric, &traffic::Traffic::uniform(3_000_000)).unwrap();
    assert_eq!(drained.makespan, Time::from_us(70));
}

#[test]
fn a_single_flow_takes_its_bytes_over_the_port_it_crosses() {
    let fabric = Fabric::new(16, 8, gb(300.0), gb(25.0)).unwrap();
    for (destination, expected) in [(3, Time::from_us(10)), (11, Time::from_us(120))] {
        let mut bytes = vec![0; 256];
        bytes[destination] = 3_000_000;
        let drained = drain(&fabric, &traffic::Traffic::matrix(bytes)).unwrap();
        let off = drained.makespan.as_secs_f64() / expected.as_secs_f64() - 1.0;
        assert!(off.abs() < 1e-5, "{} for {expected}", drained.makespan);
    }
}

#[test]
fn the_price_of_a_balanced_exchange_is_latency_plus_bytes_over_rate() {
    let bed = Testbed::default();
    let nccl = Nccl::new(bed.hardware.collectives.clone(), None).unwrap();
    for (world_size, message) in [(8, 1 << 20), (16, 1 << 10), (64, 1 << 20), (256, 1 << 14)] {
        let (local, remote) = (7, world_size - 8);
        let traffic = Traffic::Uniform {
            scope: Scope::World,
            bytes_per_peer: message,
        };
        let price = bed.model.exchange(&Exchange {
            traffic: &traffic,
            transport: Transport::Grouped,
            first: true,
            world_size,
            gpus_per_node: 8,
        });
        let share = bed
            .hardware
            .network
            .congestion
            .share(world_size / 8, remote);
        let within = nccl.nvlink_rate(message, local).rate.time_for(message * 7);
        let beyond = match remote {
            0 => Time::ZERO,
            _ => nccl
                .nic_rate(message, remote, share)
                .rate
                .time_for(message * remote as u64),
        };
        let expected = nccl.all_to_all_latency(local, remote).time + within.max(beyond);
        assert_eq!(price.alone, PerRank::Same(expected), "{world_size} GPUs");
    }
}

#[test]
fn a_ring_all_gather_comes_close_to_the_port_bound_and_never_below() {
    let params = Testbed::default().hardware.collectives;
    let (port, nccl) = (
        gb(params.intra.port_gb_per_s),
        Nccl::new(params.clone(), None).unwrap(),
    );
    for gpus in [2, 4, 8] {
        for shift in 10..=33 {
            let bytes = 1 << shift;
            let time = nccl
                .estimate(CollectiveKind::AllGather, bytes, gpus, 8)
                .time;
            let bound = port_bound(CollectiveKind::AllGather, bytes, gpus, port);
            assert!(
                time >= bound,
                "{gpus} GPUs, {bytes} bytes: {time} < {bound}"
            );
            // (n-1)/n of 8 GiB at the port's rate; A100 rings reach 75% of it and more.
            if shift == 33 && gpus == 8 {
                assert!(
                    time < bound.scale(1.0 / 0.7),
                    "{time} for a bound of {bound}"
                );
            }
        }
    }
}

#[test]
fn phases_of_2dh_send_the_messages_of_algorithm_2() {
    // S = n b. In the node m - 1 messages of S / m, between nodes n/m - 1 of m S / n.
    let (n, m, b) = (64usize, 8usize, 10_000u64);
    let payload = Payload::Uniform { bytes_per_peer: b };
    let program = all_to_all(AllToAll::TwoDh, &payload, n, m);
    let buffer = n as u64 * b;
    let [within, between] = &program.traffic[..] else {
        panic!("two phases, found {:?}", program.traffic);
    };
    assert_eq!(within.bytes(9, 10, n), buffer / 8);
    assert_eq!(within.bytes(9, 17, n), 0, "not on its node");
    assert_eq!(between.bytes(9, 17, n), 8 * buffer / 64);
    assert_eq!(between.bytes(9, 10, n), 0, "not on its rail");
    assert_eq!(within.sent_by(9, n), 7 * buffer / 8);
    assert_eq!(between.sent_by(9, n), 7 * 8 * buffer / 64);
    // Linear sends n - 1 messages of S / n.
    let linear = all_to_all(AllToAll::Linear, &payload, n, m);
    assert_eq!(linear.bytes_sent(9), 63 * b);
}

#[test]
fn a_uniform_matrix_walks_the_same_phases_as_uniform_traffic() {
    let (n, m) = (32usize, 8usize);
    for algorithm in [AllToAll::Linear, AllToAll::TwoDh, AllToAll::ThreeDh] {
        let rows = std::sync::Arc::new(vec![3u32; n * n]);
        let matrix = Payload::Matrix { rows, row_bytes: 5 };
        let uniform = Payload::Uniform { bytes_per_peer: 15 };
        let sent = |payload| {
            let program = all_to_all(algorithm, payload, n, m);
            let by_phase = program.traffic.iter().map(|traffic| {
                let ranks = 0..n;
                ranks.map(|rank| traffic.sent_by(rank, n)).collect()
            });
            by_phase.collect::<Vec<Vec<u64>>>()
        };
        assert_eq!(sent(&matrix), sent(&uniform), "{algorithm}");
    }
}

fn capacity_layer(tokens: u64, experts: u64, top_k: u32) -> LayerSpec {
    LayerSpec {
        tokens_per_step: tokens,
        top_k,
        ..small_layer(Experts::Total(experts))
    }
}

#[test]
fn capacity_follows_the_rules_of_the_authors_code() {
    // k int(x ceil(T / E)): 100 tokens over 8 experts are ceil(12.5) = 13 samples.
    let layer = capacity_layer(100, 8, 2).resolve(8).unwrap();
    let balanced = |x| Capacity::of(&layer, x, &Routing::Balanced);
    assert_eq!(balanced(1.0).per_gpu, 2 * 13);
    assert_eq!(balanced(1.25).per_gpu, 2 * 16, "int(16.25) = 16");
    assert_eq!(balanced(0.5).per_gpu, 2 * 6, "int(6.5) = 6");
    // x = 0: the largest count of any expert on any GPU, here rank 5's 80 copies for expert 2.
    let mut counts = [25u32; 64];
    counts[5 * 8..6 * 8].copy_from_slice(&[20, 20, 80, 20, 20, 20, 20, 0]);
    let step = RoutingStep::new(0, 0, 2, 8, counts.to_vec()).unwrap();
    let skewed = |x| Capacity::of(&layer, x, &Routing::Step(&step));
    assert_eq!(skewed(0.0).per_gpu, 80);
    // x < 0: as 0, but at most k int(-x samples).
    assert_eq!(skewed(-1.0).per_gpu, 26);
    assert_eq!(skewed(-100.0).per_gpu, 80);
    assert!(skewed(0.0).agreed && skewed(-1.0).agreed && !skewed(1.0).agreed);
    // f = C_g E / (k T).
    assert!((skewed(0.0).factor - 80.0 * 8.0 / 200.0).abs() < 1e-12);
}

#[test]
fn capacity_is_rounded_up_to_the_shards_and_chunks_that_divide_it() {
    let layer = capacity_layer(16_384, 8, 2).resolve(8).unwrap();
    let capacity = |per_gpu| Capacity {
        per_gpu,
        ..Capacity::of(&layer, 1.0, &Routing::Balanced)
    };
    assert_eq!(capacity(26).padded(1, 1), 26);
    assert_eq!(capacity(26).padded(2, 4), 32);
    // 2,100 slots at sharded_count 2, degree 4: the next multiple of 8, whatever the capacity.
    assert_eq!(capacity(2_100).padded(2, 4), 2_104);
    // An alignment of 64 * 8 = 512 is over 256 and already a multiple of 128; one of 40 * 8 = 320
    // goes to 640, the next multiple of both 320 and 128.
    assert_eq!(capacity(2_100).padded(64, 8), 2_560);
    assert_eq!(capacity(600).padded(40, 8), 640);
}

#[test]
fn copies_beyond_the_capacity_are_dropped_and_counted() {
    // Every rank sends 60, 30, 10, 0 copies to four experts of 26 slots: 26 + 26 + 10 stay.
    let layer = capacity_layer(50, 4, 2).resolve(4).unwrap();
    let counts = [50, 40, 10, 0].repeat(4);
    let step = RoutingStep::new(0, 0, 2, 4, counts).unwrap();
    let load = Load::new(&layer, 1.0, Padding::Capacity, &Routing::Step(&step));
    // samples = ceil(50 / 4) = 13, C_g = 26: 24 + 14 are dropped.
    assert_eq!(load.capacity.per_gpu, 26);
    assert_eq!(load.kept, PerRank::Same(26 + 26 + 10));
    assert_eq!(load.dropped, 4 * (24 + 14));
    let dropless = Load::new(&layer, 1.0, Padding::Dropless, &Routing::Step(&step));
    assert_eq!((dropless.dropped, dropless.kept.total(4)), (0, 400));
}

#[test]
fn peak_memory_is_the_worst_moment_of_live_buffers() {
    // Live: weights always (100); A at 0 and 1 (10), B at 1 and 2 (20), C at 2 (40, rank 1: 50).
    // Op 2 is the worst: 100 + 20 + 40. The input belongs to the layer before.
    let mut builder = ProgramBuilder::new(2, 2, DType::Fp16);
    let weights = builder.persistent("weights", 100);
    let input = builder.external("input", PerRank::Same(1_000));
    let a = builder.buffer("A", PerRank::Same(10));
    let b = builder.buffer("B", PerRank::Same(20));
    let c = builder.buffer("C", PerRank::Each(vec![40, 50]));
    let mut push = |reads: &[_], writes: &[_]| {
        builder.push(Stream::Compute, kernel(1).kind, reads, writes);
    };
    push(&[input], &[a]);
    push(&[a, weights], &[b]);
    push(&[b], &[c]);
    let program = builder.finish();
    let (bytes, live) = program.peak_memory(0);
    assert_eq!(bytes, 160);
    assert_eq!(live, [("weights", 100), ("B", 20), ("C", 40)]);
    assert_eq!(program.peak_memory(1).0, 170);
}

#[test]
fn flops_are_equal_for_every_r() {
    // Section 11: r C_g E rows over a hidden slice of H / r. 512 tokens, 4 experts, k = 2: C_g = 256,
    // a multiple of the 4 shards, so nothing is rounded.
    let bed = Testbed::default();
    let layer = small_layer(Experts::Total(4)).resolve(16).unwrap();
    let flops = |adaptive_r| {
        let plan = moeplan_sim::compile::Plan {
            adaptive_r,
            ..plan()
        };
        expert_flops(&bed.simulate(&layer, plan, &Routing::Balanced).program, 0)
    };
    // Forward two products of 2 * rows * D * H, backward twice that.
    let rows = 256.0 * 4.0;
    let expected = 3.0 * 2.0 * 2.0 * rows * 256.0 * 512.0;
    let found: Vec<f64> = layer.valid_adaptive_r().into_iter().map(flops).collect();
    assert_eq!(
        found,
        vec![expected; 4],
        "r of {:?}",
        layer.valid_adaptive_r()
    );
}

fn expert_flops(program: &Program, rank: usize) -> f64 {
    let experts = program
        .ops
        .iter()
        .filter(|op| matches!(op.kind, OpKind::ExpertGemm { .. }));
    experts
        .flat_map(|op| op.kind.work(op.pass, rank, program.dtype))
        .map(|work| work.flops())
        .sum()
}

#[test]
fn a_cosine_gate_projects_and_compares() {
    // Section 11: (T, D) by (D, P), then (T, P) by (P, E); backward the gradients of both factors of each. Weights (D, P),
    // (P, E) and a temperature; vectors of P channels and a factor a token and expert are kept.
    let bed = Testbed::default();
    let (t, d, p, e) = (512, 256, 64, 8);
    let spec = LayerSpec {
        gate: Gate::Cosine { projection_dim: p },
        ..small_layer(Experts::Total(e))
    };
    let program = |spec: &LayerSpec| {
        let layer = spec.resolve(8).unwrap();
        bed.simulate(&layer, plan(), &Routing::Balanced).program
    };
    let (cosine, linear) = (program(&spec), program(&small_layer(Experts::Total(e))));
    let gates = |program: &Program| -> Vec<f64> {
        let gates = program.ops.iter();
        let gates = gates.filter(|op| matches!(op.kind, OpKind::Gate { .. }));
        let work = gates.map(|op| op.kind.work(op.pass, 0, program.dtype));
        work.map(|work| work.iter().map(Work::flops).sum())
            .collect()
    };
    let forward = |products: u64| vec![2.0 * products as f64, 4.0 * products as f64];
    assert_eq!(gates(&cosine), forward(t * p * (d + e)));
    assert_eq!(gates(&linear), forward(t * d * e));
    let bytes = |program: &Program, name: &str| {
        let mut buffers = program.buffers.iter();
        let buffer = buffers.find(|buffer| buffer.name == name);
        buffer.map(|buffer| *buffer.bytes.get(0))
    };
    for name in ["gate weight", "gate gradient"] {
        assert_eq!(bytes(&cosine, name), Some(4 * (p * (d + e) + 1)));
        assert_eq!(bytes(&linear, name), Some(4 * d * e));
    }
    for name in ["gate directions", "gate directions gradient"] {
        assert_eq!(bytes(&cosine, name), Some(4 * (t + e) * (p + 1)));
        assert_eq!(bytes(&linear, name), None);
    }
    assert_eq!(cosine.ops.len(), linear.ops.len());
}

#[test]
fn dense_encode_does_t_times_the_work_of_sparse() {
    // Figure 21: O(T E C_g D) against O(T k D). With f = 1, E C_g = k T: T times as much.
    let layer = small_layer(Experts::Total(8)).resolve(8).unwrap();
    let load = Load::new(&layer, 1.0, Padding::Capacity, &Routing::Balanced);
    let (tokens, d) = (layer.tokens(), layer.spec.model_dim);
    let work = |encode| {
        let kind = OpKind::Encode {
            encode,
            tokens,
            copies: load.kept.clone(),
            slots: PerRank::Same(layer.num_experts * load.capacity.per_gpu),
            model_dim: d,
        };
        kind.work(Pass::Forward, 0, DType::Fp16)
    };
    // Multiply-adds of the einsum.
    let dense: f64 = work(Encode::Dense).iter().map(|w| w.flops() / 2.0).sum();
    // Elements copied: read once and written once, after a fill.
    let sparse: Vec<u64> = work(Encode::Sparse)
        .iter()
        .map(|work| {
            assert!(
                !matches!(work, Work::Gemm(_)),
                "a sparse encode multiplies nothing: {work:?}"
            );
            work.bytes() / 2
        })
        .collect();
    let copied = sparse[1] / 2;
    assert_eq!(copied, layer.routed_copies() * d);
    assert_eq!(dense / copied as f64, tokens as f64);
}

#[test]
fn only_fairseqs_gate_walks_down_the_rows_and_only_forward() {
    let (tokens, experts, top_k) = (16_384, 32, 2);
    let scans = |encode, pass| -> Vec<Work> {
        let kind = OpKind::Gate {
            encode,
            tokens,
            experts,
            model_dim: 512,
            top_k,
            gate: Gate::Linear,
        };
        let work = kind.work(pass, 0, DType::Tf32).into_iter();
        work.filter(|work| matches!(work, Work::ColumnScan { .. }))
            .collect()
    };
    // A mask of 8-byte integers, read and written, once a choice.
    let bytes = 2 * 8 * tokens * experts;
    let scan = Work::ColumnScan {
        rows: tokens,
        bytes,
    };
    assert_eq!(scans(Encode::Dense, Pass::Forward), [scan, scan]);
    assert_eq!(scans(Encode::Dense, Pass::Backward), []);
    assert_eq!(scans(Encode::Sparse, Pass::Forward), []);

    // It takes its rows one after the other, or its bytes where software scans in parallel.
    let price = |scan_row_ns| {
        let testbed = Testbed::with(|hardware| {
            hardware.software.scan_row_ns = scan_row_ns;
            hardware.gpu.kernel_us = 0.0;
        });
        [scan, Work::Memory { bytes }].map(|work| testbed.model.kernel(&work).time)
    };
    let [walked, pass] = price(100.0);
    assert_eq!(walked, Time::from_ns(100).times(tokens));
    assert!(walked > pass);
    assert_eq!(price(0.0), [pass, pass]);
}
