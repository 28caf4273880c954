//! What holds for every layer, world, plan and routing.

use moeplan_sim::compile::{Load, Plan, Routing};
use moeplan_sim::cost::{CostModel, Exchange, Wire};
use moeplan_sim::hardware::Hardware;
use moeplan_sim::ir::{Lifetime, OpKind, Pass, PerRank, Program, Stage, Traffic};
use moeplan_sim::policy::{Runner, best, candidates};
use moeplan_sim::simulate::Trace;
use moeplan_sim::spec::{
    AllToAll, DType, Encode, Experts, Gate, LayerSpec, Layout, Padding, Policy, ResolvedLayer,
    Strategy as LayerStrategy,
};
use moeplan_sim::units::Time;
use moeplan_tests::{Testbed, routing, tutel};
use moeplan_traces::RoutingStep;
use proptest::prelude::*;
use proptest::sample::select;

/// A layer on a world, how it is run, and what it routes.
#[derive(Debug, Clone)]
struct Case {
    world_size: u64,
    layer: LayerSpec,
    plan: Plan,
    routing: &'static str,
    seed: u64,
}

impl Case {
    fn layer(&self) -> ResolvedLayer {
        self.layer.resolve(self.world_size).unwrap()
    }

    fn routing(&self) -> RoutingStep {
        routing(&self.layer(), self.routing, self.seed)
    }

    fn simulate(&self, bed: &Testbed) -> Trace {
        let step = self.routing();
        bed.simulate(&self.layer(), self.plan, &Routing::Step(&step))
    }
}

fn layers() -> impl Strategy<Value = (u64, LayerSpec)> {
    let worlds = select(vec![8u64, 16, 24, 32, 64]);
    // GPUs an expert, or experts a GPU.
    let experts = select(vec![0.25, 0.5, 1.0, 2.0, 3.0]);
    // Small steps are bound by launches, large ones by their work.
    let dims = (
        1u64..=8,
        1u64..=8,
        select(vec![64u64, 512]),
        select(DType::ALL.to_vec()),
        select(vec![Gate::Linear, Gate::Cosine { projection_dim: 48 }]),
    );
    let routed = (
        1u64..=700,
        select(vec![1u64, 16]),
        1u32..=3,
        select(vec![1.0, 1.3, 2.0, 0.0, -1.5]),
    );
    (worlds, experts, dims, routed).prop_map(|(world_size, experts, dims, routed)| {
        let spec = LayerSpec {
            tokens_per_step: routed.0 * routed.1,
            model_dim: dims.0 * dims.2,
            hidden_dim: dims.1 * dims.2,
            experts: Experts::PerGpu(experts),
            top_k: routed.2.min((experts * world_size as f64) as u32),
            capacity_factor: routed.3,
            dtype: dims.3,
            gate: dims.4,
        };
        (world_size, spec)
    })
}

fn cases() -> impl Strategy<Value = Case> {
    let degrees = || select(vec![1u64, 2, 3, 4, 8]);
    let data = (
        select(AllToAll::ALL.to_vec()),
        select(Encode::ALL.to_vec()),
        select(Layout::ALL.to_vec()),
        select(Padding::ALL.to_vec()),
    );
    let routings = select(vec!["uniform", "zipf:0.5", "zipf:1.5", "hot:0.4"]);
    let choices = (data, degrees(), degrees(), 0usize..8);
    (layers(), choices, routings, 0u64..1_000).prop_map(|(layer, choices, routing, seed)| {
        let ((all_to_all, encode, layout, padding), forward_degree, backward_degree, r) = choices;
        let (world_size, layer) = layer;
        let valid = layer.resolve(world_size).unwrap().valid_adaptive_r();
        let plan = Plan {
            encode,
            all_to_all,
            layout,
            padding,
            forward_degree,
            backward_degree,
            adaptive_r: valid[r % valid.len()],
        };
        Case {
            world_size,
            layer,
            plan,
            routing,
            seed,
        }
    })
}

/// Simulates `case` on the default cluster and hands the result to `holds`.
fn check(
    case: &Case,
    holds: impl FnOnce(&Testbed, &ResolvedLayer, &Trace) -> Result<(), TestCaseError>,
) -> Result<(), TestCaseError> {
    let bed = Testbed::default();
    let trace = case.simulate(&bed);
    holds(&bed, &case.layer(), &trace)
}

/// Exchanges of a stage and pass, in order.
fn exchanges(program: &Program, stage: Stage, pass: Pass) -> impl Iterator<Item = &Traffic> {
    let ops = program.ops.iter();
    ops.filter(move |op| op.stage == stage && op.pass == pass)
        .filter_map(|op| match &op.kind {
            OpKind::Exchange { traffic, .. } => Some(program.traffic(*traffic)),
            _ => None,
        })
}

/// Rows that the experts of all ranks multiply in a pass, over all chunks.
fn expert_rows(program: &Program, pass: Pass) -> u64 {
    let label = match pass {
        Pass::Forward => "x·W1",
        Pass::Backward => "grad W1",
    };
    let ops = program.ops.iter();
    ops.filter(|op| op.pass == pass && op.kind.label() == label)
        .map(|op| match &op.kind {
            OpKind::ExpertGemm { rows, .. } => {
                (0..program.world_size).map(|rank| rows.total(rank)).sum()
            }
            _ => 0,
        })
        .sum()
}

fn expert_flops(program: &Program, pass: Pass) -> f64 {
    let ops = program.ops.iter();
    ops.filter(|op| op.pass == pass && matches!(op.kind, OpKind::ExpertGemm { .. }))
        .map(|op| {
            let flops = |rank| -> f64 {
                let work = op.kind.work(op.pass, rank, program.dtype);
                work.iter().map(|work| work.flops()).sum()
            };
            match &op.kind {
                OpKind::ExpertGemm {
                    rows: moeplan_sim::ir::ExpertRows::Padded { .. },
                    ..
                } => flops(0) * program.world_size as f64,
                _ => (0..program.world_size).map(flops).sum(),
            }
        })
        .sum()
}

fn sent(traffic: &Traffic, world_size: usize) -> u64 {
    (0..world_size)
        .map(|rank| traffic.sent_by(rank, world_size))
        .sum()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn bytes_sent_are_bytes_received(case in cases()) {
        check(&case, |_, _, trace| {
            let world = trace.program.world_size;
            for traffic in &trace.program.traffic {
                let received: u64 = (0..world).map(|rank| traffic.received_by(rank, world)).sum();
                prop_assert_eq!(sent(traffic, world), received);
                // And nothing leaves its group.
                if let Traffic::Matrix { scope, rows, .. } = traffic {
                    for (pair, &rows) in rows.iter().enumerate() {
                        let (from, to) = (pair / world, pair % world);
                        prop_assert!(rows == 0 || scope.group_of(from) == scope.group_of(to));
                    }
                }
            }
            Ok(())
        })?;
    }

    #[test]
    fn what_is_dispatched_is_combined(case in cases()) {
        check(&case, |_, _, trace| {
            let (program, world) = (&trace.program, trace.program.world_size);
            let moved = |stage, pass| exchanges(program, stage, pass).map(|t| sent(t, world)).sum::<u64>();
            let (dispatched, combined) = (moved(Stage::Dispatch, Pass::Forward), moved(Stage::Combine, Pass::Forward));
            // Gradients go the same ways backwards, in however many chunks.
            prop_assert_eq!(combined, moved(Stage::Dispatch, Pass::Backward));
            prop_assert_eq!(dispatched, moved(Stage::Combine, Pass::Backward));
            // Hierarchical phases of uneven rows pass other ranks out and back.
            if case.plan.all_to_all == AllToAll::Linear || case.plan.padding == Padding::Capacity {
                prop_assert_eq!(dispatched, combined);
            }
            Ok(())
        })?;
    }

    #[test]
    fn every_copy_is_kept_or_dropped(case in cases()) {
        let (layer, step) = (case.layer(), case.routing());
        let x = layer.spec.capacity_factor;
        let load = Load::new(&layer, x, case.plan.padding, &Routing::Step(&step));
        let kept = load.kept.total(case.world_size as usize);
        let routed = layer.routed_copies() * case.world_size;
        // A padded program takes the mean over ranks for all, rounded down.
        let lost = routed - kept - load.dropped;
        prop_assert!(match case.plan.padding {
            Padding::Capacity => lost < case.world_size,
            Padding::Dropless => lost == 0 && load.dropped == 0,
        }, "routed {routed}, kept {kept}, dropped {}", load.dropped);
        prop_assert!(load.dropped == 0 || x != 0.0);
    }

    #[test]
    fn chunks_and_r_conserve_rows_and_flops(case in cases()) {
        check(&case, |_, layer, trace| {
            let r = case.plan.adaptive_r.max(1);
            let once: u64 = match case.plan.padding {
                Padding::Dropless => layer.routed_copies() * case.world_size,
                Padding::Capacity => {
                    let shards = layer.sharded_count;
                    let degree = lcm(case.plan.forward_degree, case.plan.backward_degree);
                    let capacity = trace.step.capacity_factor * layer.routed_copies() as f64 / layer.num_experts as f64;
                    let capacity = round_up(capacity.round() as u64, shards * degree);
                    layer.num_experts * capacity * case.world_size
                }
            };
            for pass in [Pass::Forward, Pass::Backward] {
                prop_assert_eq!(expert_rows(&trace.program, pass), once * r);
                let products = if pass == Pass::Forward { 2.0 } else { 4.0 };
                let (d, h) = (layer.spec.model_dim as f64, layer.spec.hidden_dim as f64);
                prop_assert_eq!(expert_flops(&trace.program, pass), products * 2.0 * once as f64 * d * h);
            }
            Ok(())
        })?;
    }

    #[test]
    fn programs_are_in_issue_order_and_write_before_they_read(case in cases()) {
        check(&case, |_, _, trace| {
            let program = &trace.program;
            let mut written = vec![None; program.buffers.len()];
            for (id, op) in program.iter() {
                for before in &op.after {
                    prop_assert!(*before < id, "{id:?} waits for {before:?}");
                }
                for buffer in &op.reads {
                    let found = &program.buffers[buffer.0 as usize];
                    let writer: Option<moeplan_sim::ir::OpId> = written[buffer.0 as usize];
                    match (writer, found.lifetime) {
                        (Some(writer), _) => prop_assert!(op.after.contains(&writer), "{id:?} does not wait for the writer of {}", found.name),
                        (None, Lifetime::Transient) => {
                            prop_assert!(false, "{id:?} {} reads {} before it is written", op.kind.label(), found.name);
                        }
                        (None, Lifetime::Persistent | Lifetime::External) => {}
                    }
                }
                for buffer in &op.writes {
                    written[buffer.0 as usize] = Some(id);
                }
                let degree = match op.pass {
                    Pass::Forward => case.plan.forward_degree,
                    Pass::Backward => case.plan.backward_degree,
                };
                prop_assert!(u64::from(op.chunk) < degree);
            }
            Ok(())
        })?;
    }

    #[test]
    fn memory_is_that_of_the_fullest_rank(case in cases()) {
        check(&case, |_, _, trace| {
            let ranks = 0..trace.program.world_size;
            let fullest = ranks.map(|rank| trace.program.peak_memory(rank).0).max();
            prop_assert_eq!(Some(trace.program.largest_peak_memory()), fullest);
            Ok(())
        })?;
    }

    #[test]
    fn timelines_keep_dependencies_and_queues(case in cases()) {
        check(&case, |_, _, trace| {
            for rank in 0..trace.timeline.rows() {
                let spans = trace.timeline.rank(rank);
                let mut queues = [Time::ZERO; 2];
                for (id, op) in trace.program.iter() {
                    let span = spans[id.index()];
                    prop_assert!(span.start <= span.end);
                    let alone = *trace.priced[id.index()].alone.get(rank);
                    prop_assert!(span.end - span.start >= alone, "{id:?} ran faster than alone");
                    for before in &op.after {
                        prop_assert!(spans[before.index()].end <= span.start);
                    }
                    let queue = &mut queues[op.stream as usize];
                    prop_assert!(*queue <= span.start);
                    *queue = span.end;
                }
            }
            Ok(())
        })?;
    }

    #[test]
    fn no_exchange_beats_its_ports(case in cases(), oversubscription in select(vec![1.0, 3.0])) {
        let bed = Testbed::with(|hardware| {
            hardware.network.oversubscription = oversubscription;
            hardware.network.nodes_per_leaf = 2;
        });
        check(&case, |_, _, trace| {
            let program = &trace.program;
            for op in &program.ops {
                if let OpKind::Exchange { traffic, transport, first } = op.kind {
                    let price = bed.model.exchange(&Exchange {
                        traffic: program.traffic(traffic),
                        transport,
                        first,
                        world_size: program.world_size,
                        gpus_per_node: program.gpus_per_node,
                    });
                    let slowest = match price.alone {
                        PerRank::Same(time) => time,
                        PerRank::Each(times) => times.into_iter().max().unwrap(),
                    };
                    prop_assert!(slowest >= price.port_bound, "{slowest} < {}", price.port_bound);
                    // Of the whole matrix: chunks of few rows may be empty and are priced as the mean.
                    let leaves_nodes = match program.traffic(traffic) {
                        even @ Traffic::Uniform { .. } => (8..program.world_size)
                            .any(|peer| even.bytes(0, peer, program.world_size) > 0),
                        Traffic::Matrix { rows, .. } => rows.iter().enumerate().any(|(pair, &rows)| {
                            rows > 0 && pair / program.world_size / 8 != pair % program.world_size / 8
                        }),
                    };
                    prop_assert!(leaves_nodes || price.wire == Wire::NvLink, "NICs carry nothing");
                }
            }
            Ok(())
        })?;
    }
}

fn lcm(a: u64, b: u64) -> u64 {
    (a.max(b)..=a * b)
        .find(|n| n.is_multiple_of(a) && n.is_multiple_of(b))
        .unwrap()
}

fn round_up(value: u64, unit: u64) -> u64 {
    value.div_ceil(unit) * unit
}

/// How `larger` compares with `smaller`, which does less or has more: 0.01 is 1% faster.
fn faster_by(smaller: &Trace, larger: &Trace) -> f64 {
    1.0 - larger.step.time.as_secs_f64() / smaller.step.time.as_secs_f64()
}

/// Share of its step time that a step may gain from more work or less bandwidth. Padded: none.
/// Dropless: the bound of the network solver, 2 / 128 of a makespan (see `drain_in_steps`). More
/// tokens are another draw, and all messages of an uneven exchange are priced at the rate of their
/// mean, so a step whose few rows spread over more peers may come out 0.01% faster.
///
/// Where streams overlap, a collective that is ready a moment later may find a kernel in its place or
/// one gone, on GPUs as here (Graham's anomalies, SIAM 1969): it moves by the longest kernel.
fn anomaly(case: &Case, before: &Trace) -> f64 {
    let solver = match case.plan.padding {
        Padding::Capacity => 0.0,
        Padding::Dropless => 2.0 / 128.0,
    };
    if case.plan.forward_degree == 1 && case.plan.backward_degree == 1 {
        return solver;
    }
    let spans = (0..before.timeline.rows()).flat_map(|rank| before.timeline.rank(rank).iter());
    let kernels = before.program.ops.iter().cycle().zip(spans);
    let longest = kernels
        .filter(|(op, _)| op.kind.scope(&before.program.traffic).is_none())
        .map(|(_, span)| span.end - span.start)
        .max();
    solver + longest.map_or(0.0, |time| time.as_secs_f64()) / before.step.time.as_secs_f64()
}

fn slower_nic(hardware: &mut Hardware, factor: f64) {
    hardware.collectives.nic.wire_gb_per_s /= factor;
}

fn slower_nvlink(hardware: &mut Hardware, factor: f64) {
    let intra = &mut hardware.collectives.intra;
    intra.port_gb_per_s /= factor;
    for kind in [&mut intra.ll, &mut intra.simple] {
        for segment in [
            &mut kind.all_to_all,
            &mut kind.all_gather,
            &mut kind.reduce_scatter,
            &mut kind.all_reduce,
        ] {
            segment.wire_ps_per_byte *= factor;
            segment.own_ps_per_byte *= factor;
        }
    }
    intra.ll128.wire_ps_per_byte *= factor;
    intra.ll128.own_ps_per_byte *= factor;
}

fn slower_hbm(hardware: &mut Hardware, factor: f64) {
    hardware.gpu.hbm_gb_per_s /= factor;
    hardware.gpu.gemm.hbm_gbps /= factor;
    hardware.gpu.gemm.store_gbps /= factor;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn more_work_never_takes_less_time(case in cases(), times in 1u64..4) {
        let bed = Testbed::default();
        let before = case.simulate(&bed);
        let LayerSpec { tokens_per_step, model_dim, hidden_dim, .. } = case.layer;
        let larger = [
            LayerSpec { tokens_per_step: tokens_per_step * (times + 1), ..case.layer.clone() },
            LayerSpec { model_dim: model_dim + 64 * times, ..case.layer.clone() },
            LayerSpec { hidden_dim: hidden_dim + 64 * times, ..case.layer.clone() },
        ];
        for layer in larger {
            let after = Case { layer, ..case.clone() };
            let gained = faster_by(&before, &after.simulate(&bed));
            prop_assert!(gained <= anomaly(&case, &before), "{gained:.4} faster with {:?}", after.layer);
        }
    }

    #[test]
    fn less_bandwidth_never_takes_less_time(case in cases(), factor in 1.05f64..4.0) {
        let before = case.simulate(&Testbed::default());
        for (name, change) in [
            ("NIC", slower_nic as fn(&mut Hardware, f64)),
            ("NVLink", slower_nvlink),
            ("HBM", slower_hbm),
        ] {
            let after = case.simulate(&Testbed::with(|hardware| change(hardware, factor)));
            let gained = faster_by(&before, &after);
            prop_assert!(gained <= anomaly(&case, &before), "{gained:.4} faster with a {factor:.2} times slower {name}");
        }
    }

    /// Nodes change places with their experts and all that is routed from and to them. The solver
    /// orders ports by rank where they tie, so a finish may move within its bound: 2 / 128 of the
    /// makespan (see `drain_in_steps`).
    #[test]
    fn relabelling_nodes_changes_nothing(case in cases(), shift in 1usize..7) {
        let mut case = case;
        case.plan.padding = Padding::Dropless;
        // Experts that span nodes would change places with only a part of their weights.
        prop_assume!(case.layer().sharded_count <= 8 && case.plan.all_to_all != AllToAll::ThreeDh);
        let (layer, step) = (case.layer(), case.routing());
        let (world, experts) = (case.world_size as usize, layer.num_experts as usize);
        let per_node = experts * 8 / world;
        let nodes = world / 8;
        let moved = |index: usize, size: usize| (index / size + shift) % nodes * size + index % size;
        let mut counts = vec![0; world * experts];
        for (rank, row) in step.rows().enumerate() {
            for (expert, &count) in row.iter().enumerate() {
                counts[moved(rank, 8) * experts + moved(expert, per_node)] = count;
            }
        }
        let relabelled = RoutingStep::new(0, 0, layer.spec.top_k, experts, counts).unwrap();
        let bed = Testbed::default();
        let before = bed.simulate(&layer, case.plan, &Routing::Step(&step));
        let after = bed.simulate(&layer, case.plan, &Routing::Step(&relabelled));
        let off = faster_by(&before, &after).abs();
        prop_assert!(off <= 2.0 / 128.0, "{off:.5}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    #[test]
    fn the_oracle_is_never_slower_than_a_choice_it_contains(case in cases()) {
        let bed = Testbed::default();
        let (layer, step) = (case.layer(), case.routing());
        let scenario = bed.scenario(&layer);
        let strategy = LayerStrategy { encode: case.plan.encode, layout: case.plan.layout, ..tutel(case.plan.padding) };
        let plans = candidates(&strategy, &layer).unwrap();
        let load = Load::new(&layer, layer.spec.capacity_factor, case.plan.padding, &Routing::Step(&step));
        let chosen = best(&scenario, &plans, &load).unwrap();
        for plan in plans {
            let fixed = bed.simulate(&layer, plan, &Routing::Step(&step)).step;
            prop_assert!(chosen.time <= fixed.time || !fixed.fits, "{} beats {}", plan, chosen.plan);
        }
    }

    /// The dictionary searches r as if time were convex in it (Section 3.3): where it is not, it
    /// may settle on a neighbour. On one repeated step it ends within 10% of the oracle, and each
    /// trial costs what it costs.
    #[test]
    fn the_dictionary_pays_for_its_trials_and_ends_near_the_oracle(case in cases()) {
        let bed = Testbed::default();
        let (layer, step) = (case.layer(), case.routing());
        let strategy = LayerStrategy { policy: Policy::Dictionary, ..tutel(case.plan.padding) };
        let plans = candidates(&strategy, &layer).unwrap();
        let load = Load::new(&layer, layer.spec.capacity_factor, case.plan.padding, &Routing::Step(&step));
        let oracle = best(&bed.scenario(&layer), &plans, &load).unwrap().time;
        let mut runner = Runner::new(bed.scenario(&layer), strategy, false).unwrap();
        let mut trials = 0;
        let mut spent = Time::ZERO;
        let learned = loop {
            let decided = runner.step(&Routing::Step(&step)).unwrap();
            if !decided.trial {
                break decided.step;
            }
            let charged = bed.simulate(&layer, decided.step.plan, &Routing::Step(&step)).step.time;
            prop_assert_eq!(decided.step.time, charged);
            spent += charged;
            trials += 1;
            prop_assert!(trials <= 60, "never done learning");
        };
        prop_assert!(trials >= 8, "four degrees and two algorithms at least: {trials}");
        prop_assert!(spent > oracle.times(trials), "learning is not free");
        let regret = learned.time.as_secs_f64() / oracle.as_secs_f64() - 1.0;
        prop_assert!(regret <= 0.1, "{regret:.3} after {trials} trials");
        // And it stays.
        let again = runner.step(&Routing::Step(&step)).unwrap();
        prop_assert!(!again.trial && again.step.plan == learned.plan);
    }
}
