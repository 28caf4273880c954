use super::*;
use crate::compile::{Load, ModelSource, MoeRun, Plan, Routing, compile_model};
use crate::cost::analytic::Analytic;
use crate::hardware::{Hardware, builtin};
use crate::ir::{OpKind, Program, Scope, Stage};
use crate::spec::{Padding, Phase, Strategy};

fn named(name: &str) -> ModelSpec {
    preset(name, 4_096).unwrap().unwrap()
}

#[track_caller]
fn close(ours: f64, theirs: f64, tolerance: f64) {
    let error = ours / theirs - 1.0;
    assert!(
        error.abs() <= tolerance,
        "{ours} against {theirs}: {error:+.4}"
    );
}

#[test]
fn parameters_are_the_published_ones() {
    for &name in PRESETS {
        let (model, published) = (named(name), published(name).unwrap());
        close(model.parameters() as f64, published.parameters, 0.012);
        let mut active = model.active_parameters() as f64;
        if name == "gpt-oss-20b" {
            active -= 201_088.0 * 2_880.0;
        }
        close(active, published.active_parameters, 0.025);
    }
}

fn lab(name: &str, gpus: u64) -> (ModelSpec, Hardware, u64) {
    (named(name), builtin("nd-a100-v4-80gb").unwrap(), gpus)
}

fn rate(
    (model, hardware, gpus): &(ModelSpec, Hardware, u64),
    phase: Phase,
    variant: &Variant,
) -> f64 {
    run(
        model,
        hardware,
        *gpus,
        phase,
        variant,
        MemorySaving::default(),
    )
    .rate_per_gpu
}

fn run(
    model: &ModelSpec,
    hardware: &Hardware,
    gpus: u64,
    phase: Phase,
    variant: &Variant,
    saving: MemorySaving,
) -> ModelStep {
    let prices = Analytic::new(hardware).unwrap();
    let run = ModelRun {
        model,
        hardware,
        prices: &prices,
        gpus,
        gpus_per_node: gpus.min(8),
        batch: model.batch,
        phase,
        saving,
        tensor_parallel: 1,
    };
    step(&run, variant).unwrap()
}

/// In the authors' code a block has 15 tensors (norms 4, qkv 2, bias of positions 3, projection 2, feed-forward 4), the patches'
/// embedding 4, each of three mergings 3, the last norm and the head 2 each.
#[test]
fn swin_has_the_tensors_of_the_published_code() {
    let dense = named("swinv2-moe-b").dense();
    let tensors: u64 = dense.parts.iter().map(Part::tensors).sum();
    assert_eq!(tensors, 24 * 15 + 4 + 3 * 3 + 2 + 2);
}

/// Table 11: parameters, active parameters and multiply-adds of every variant.
#[test]
fn swin_is_the_published_model() {
    let variant = |name: &str, experts: u64, top_k: u32, capacity_factor: f64| {
        named(name).with_moe(|moe| {
            (moe.experts, moe.top_k, moe.capacity_factor) = (experts, top_k, capacity_factor);
        })
    };
    let check = |model: ModelSpec, parameters: f64, active: f64, macs: f64| {
        close(model.parameters() as f64, parameters * 1e6, 2e-3);
        close(model.active_parameters() as f64, active * 1e6, 4e-3);
        close(model.macs(), macs * 1e9, 5e-3);
    };
    check(named("swinv2-moe-s").dense(), 65.8, 65.8, 6.76);
    check(variant("swinv2-moe-s", 8, 1, 1.0), 173.3, 65.8, 6.76);
    check(variant("swinv2-moe-s", 32, 1, 1.0), 541.8, 65.8, 6.76);
    check(named("swinv2-moe-b").dense(), 109.3, 109.3, 11.78);
    check(variant("swinv2-moe-b", 8, 1, 1.0), 300.3, 109.3, 11.78);
    check(variant("swinv2-moe-b", 32, 1, 1.0), 955.3, 109.3, 11.78);
    check(variant("swinv2-moe-b", 32, 2, 1.0), 955.3, 136.6, 14.80);
    check(variant("swinv2-moe-b", 32, 1, 1.25), 955.3, 109.3, 12.54);
    check(variant("swinv2-moe-b", 32, 1, 0.5), 955.3, 109.3, 10.27);
    assert_eq!(named("swinv2-moe-b").moe_layers().count(), 10);
}

/// Tutel as the published model's code leaves it: fast kernels, Flexible All-to-All, nothing adaptive.
fn tutel_defaults() -> Strategy {
    use crate::spec::{Encode, Layout};
    Strategy {
        name: "tutel".into(),
        encode: Encode::Sparse,
        layout: Layout::Flexible,
        ..Strategy::fairseq()
    }
}

/// Held-out rows of Tables 7 and 12: images per second of MoE models, none of which anything was fitted to.
#[test]
fn moe_rows_are_predicted() {
    let fairseq = Variant::Moe(Strategy::fairseq());
    let tutel = Variant::Moe(tutel_defaults());
    let check = |gpus, phase, baseline: f64, ours: f64| {
        let lab = lab("swinv2-moe-b", gpus);
        close(rate(&lab, phase, &fairseq), baseline, 0.15);
        close(rate(&lab, phase, &tutel), ours, 0.10);
    };
    check(8, Phase::Forward, 507.0, 1053.0);
    check(32, Phase::Training, 162.0, 249.0);
    check(32, Phase::Forward, 455.0, 892.0);
    check(128, Phase::Training, 146.0, 226.0);
    check(128, Phase::Forward, 375.0, 792.0);
    let (model, hardware, gpus) = lab("swinv2-moe-b", 32);
    let twice = (model.with_moe(|moe| moe.top_k = 2), hardware, gpus);
    close(rate(&twice, Phase::Training, &tutel), 206.0, 0.05);
    close(rate(&twice, Phase::Forward, &tutel), 679.0, 0.05);
}

/// The program's products are the model's: two FLOPs a multiply-add, three passes in training. Fused attention counts
/// five products for two backward.
#[test]
fn flops_of_the_program_are_those_of_the_model() {
    let model = named("swinv2-moe-b").dense();
    for (phase, passes) in [(Phase::Forward, 1.0), (Phase::Training, 3.0)] {
        let program = compile_model(ModelSource {
            model: &model,
            moe: &[],
            items: 4,
            world_size: 8,
            gpus_per_node: 8,
            phase,
            saving: MemorySaving::default(),
            tensor_parallel: 1,
        })
        .unwrap();
        close(program.flops(0), 2.0 * 4.0 * passes * model.macs(), 1e-9);
    }
}

/// Every GPU's shared gradients are reduced once, experts' never: 4 bytes a shared parameter.
#[test]
fn gradients_of_experts_are_not_reduced() {
    let model = named("swinv2-moe-b").dense();
    let program = compile_model(ModelSource {
        model: &model,
        moe: &[],
        items: 1,
        world_size: 16,
        gpus_per_node: 8,
        phase: Phase::Training,
        saving: MemorySaving::default(),
        tensor_parallel: 1,
    })
    .unwrap();
    let reduced: u64 = program
        .ops
        .iter()
        .map(|op| match op.kind {
            OpKind::AllReduce { bytes, .. } => bytes,
            _ => 0,
        })
        .sum();
    assert_eq!(reduced, 4 * model.parameters());
    // A ring over 16 GPUs of 2 nodes cannot beat twice 15/16 of the bytes over 8 NICs of 25 GB/s.
    let hardware = builtin("nd-a100-v4-80gb").unwrap();
    let prices = Analytic::new(&hardware).unwrap();
    let time = crate::cost::CostModel::all_reduce(&prices, &program, Scope::World, reduced).time;
    let bound = reduced as f64 * 2.0 * 15.0 / 16.0 / (8.0 * 25e9);
    assert!((bound..3.0 * bound).contains(&time.as_secs_f64()), "{time}");
}

#[test]
fn sharded_states_take_their_share_of_memory() {
    let (model, hardware, _) = lab("olmoe-1b-7b", 16);
    let variant = Variant::Moe(Strategy::tutel());
    let of = |shard_states, shard_gradients| {
        let saving = MemorySaving {
            shard_states,
            shard_gradients,
            ..MemorySaving::default()
        };
        run(&model, &hardware, 16, Phase::Training, &variant, saving)
    };
    let (states, gradients) = (of(true, false), of(false, true));
    assert_eq!(
        states.time, gradients.time,
        "the same sums, kept by one or by all"
    );
    let (whole, sharded) = (of(false, false).memory, states.memory);
    let shared: u64 = model
        .parts
        .iter()
        .filter(|part| !matches!(part.work, Work::Moe(_)))
        .map(Part::shared_parameters)
        .sum();
    assert_eq!(
        whole.optimizer - sharded.optimizer,
        shared * 12 - (shared * 12).div_ceil(16)
    );
    assert_eq!(whole.parameters, sharded.parameters);
    // Gradients of gates are summed with the others.
    let summed: u64 = model.parts.iter().map(Part::shared_parameters).sum();
    let less = whole.gradients - gradients.memory.gradients;
    close(less as f64, (summed * 2) as f64 * 15.0 / 16.0, 1e-6);
    assert_eq!(gradients.memory.optimizer, sharded.optimizer);
}

#[test]
fn groups_follow_recorded_layers_in_turn() {
    let model = named("swinv2-moe-b");
    // Nine MoE layers in stage 3, one in stage 4, which differs in shape.
    let of = |recorded| {
        let groups = MoeGroups::new(&model, recorded);
        let found = groups.iter().map(|group| (group.recorded, group.layers));
        found.collect::<Vec<_>>()
    };
    assert_eq!(of(1), [(0, 9), (0, 1)]);
    assert_eq!(of(2), [(0, 5), (1, 4), (1, 1)]);
    assert_eq!(of(0), of(1));
    assert!(of(64).iter().map(|(_, layers)| layers).sum::<u64>() == 10);
}

/// The forward pass of all blocks runs twice, and of each block only the input is kept.
#[test]
fn recomputing_trades_time_for_memory() {
    let (model, hardware, gpus) = lab("olmoe-1b-7b", 16);
    let variant = Variant::Moe(Strategy::fairseq());
    let of = |phase, recompute| {
        let saving = MemorySaving {
            recompute,
            ..MemorySaving::default()
        };
        run(&model, &hardware, gpus, phase, &variant, saving)
    };
    let (plain, again) = (of(Phase::Training, false), of(Phase::Training, true));
    let forward = of(Phase::Forward, false);
    let ratio = again.time.as_secs_f64() / (plain.time + forward.time).as_secs_f64();
    assert!(
        (0.95..1.0).contains(&ratio),
        "all but the head twice: {ratio}"
    );
    assert_eq!(
        again.flops_per_gpu, plain.flops_per_gpu,
        "a model's, not a program's"
    );
    // What one of 16 blocks keeps, the inputs of all, and the head's logits.
    let saved = again.memory.activations as f64 / plain.memory.activations as f64;
    assert!((1.0 / 16.0..0.4).contains(&saved), "{saved}");
    assert_eq!(
        (
            again.memory.parameters,
            again.memory.gradients,
            again.memory.optimizer
        ),
        (
            plain.memory.parameters,
            plain.memory.gradients,
            plain.memory.optimizer
        ),
    );
    assert_eq!(of(Phase::Forward, true).time, forward.time);
}

/// The same products and one update, with the activations of one part of the batch at a time.
#[test]
fn micro_batches_add_up_gradients_and_are_summed_once() {
    let model = named("olmoe-1b-7b");
    let layer = model.moe_layers().next().unwrap();
    let of = |micro_batches, shard_gradients| {
        let layer = layer.layer(8 / micro_batches).resolve(16).unwrap();
        let load = Load::new(&layer, 1.0, Padding::Capacity, &Routing::Balanced);
        let run = MoeRun {
            layer: &layer,
            load: &load,
            plan: Plan::PLAIN,
        };
        let source = ModelSource {
            model: &model,
            moe: &[run; 16],
            items: 8 / micro_batches,
            world_size: 16,
            gpus_per_node: 8,
            phase: Phase::Training,
            saving: MemorySaving {
                micro_batches,
                shard_gradients,
                ..MemorySaving::default()
            },
            tensor_parallel: 1,
        };
        (compile_model(source).unwrap(), layer.local_parameters())
    };
    let reduced = |program: &Program| {
        let kinds = program.ops.iter().map(|op| match op.kind {
            OpKind::AllReduce { bytes, .. } | OpKind::ReduceScatter { bytes, .. } => bytes,
            _ => 0,
        });
        kinds.sum::<u64>()
    };
    // Beside the optimizer: two reads and a write of every gradient, for each micro-batch but the first.
    let added = |program: &Program| {
        let ops = program.ops.iter().filter(|op| op.stage == Stage::Optimizer);
        let bytes = ops.map(|op| {
            op.kind
                .work(op.pass, 0, program.dtype)
                .iter()
                .map(crate::ir::Work::bytes)
                .sum()
        });
        let bytes: Vec<u64> = bytes.collect();
        let (_optimizer, added) = bytes.split_last().unwrap();
        added.iter().sum::<u64>()
    };
    for shard_gradients in [false, true] {
        let (whole, _) = of(1, shard_gradients);
        assert_eq!(added(&whole), 0);
        for micro_batches in [2, 8] {
            let (parts, local) = of(micro_batches, shard_gradients);
            close(parts.flops(0), whole.flops(0), 1e-9);
            let times = if shard_gradients { micro_batches } else { 1 };
            assert_eq!(reduced(&parts), times * reduced(&whole));
            let shared: u64 = model.parts.iter().map(Part::shared_parameters).sum();
            let kept = if shard_gradients { shared / 16 } else { shared };
            let expected = 3 * 2 * (micro_batches - 1) * (kept + 16 * local);
            close(added(&parts) as f64, expected as f64, 1e-3);
            assert_eq!(parts.persistent_bytes(), whole.persistent_bytes());
            let alive =
                |program: &Program| program.largest_peak_memory() - program.persistent_bytes();
            let share = alive(&parts) as f64 / alive(&whole) as f64;
            assert!(share < 1.02 / micro_batches as f64, "{share}");
        }
    }
    for (micro_batches, phase) in [
        (0, Phase::Training),
        (3, Phase::Training),
        (2, Phase::Forward),
    ] {
        let saving = MemorySaving::default().in_parts(micro_batches);
        assert_eq!(saving.check(8, phase).unwrap_err().field, "micro-batches");
    }
}

/// A program of `model` without its experts, `tensor_parallel` GPUs sharing weights.
fn shared(model: &ModelSpec, phase: Phase, tensor_parallel: u64) -> Program {
    compile_model(ModelSource {
        model,
        moe: &[],
        items: 2,
        world_size: 16,
        gpus_per_node: 8,
        phase,
        saving: MemorySaving::default(),
        tensor_parallel,
    })
    .unwrap()
}

#[test]
fn gpus_that_share_weights_do_the_same_work_on_less_memory() {
    for name in ["mixtral-8x7b", "deepseek-v3"] {
        let model = named(name).dense();
        let uncut = |part: &Part| part.shared_parameters() - part.cut_parameters();
        let uncut: u64 = model.parts.iter().map(uncut).sum();
        for phase in [Phase::Forward, Phase::Training] {
            let alone = shared(&model, phase, 1);
            for group in [2, 4, 8] {
                let program = shared(&model, phase, group);
                close(program.flops(0), alone.flops(0), 1e-9);
                let held = *program.buffers[0].bytes.get(0) / 2;
                assert_eq!(held, uncut + (model.parameters() - uncut) / group, "{name}");
            }
        }
    }
}

/// Of L layers with dense feed-forwards each gathers and scatters twice, the embedding scatters, the head gathers.
/// Backward all of that happens the other way round, and what entered a cut product is gathered again.
#[test]
fn gpus_that_share_weights_exchange_tokens_of_the_group() {
    let model = named("mixtral-8x7b").dense();
    let (layers, hidden) = (32, 4_096_u64);
    let of_group = |program: &Program, group: u32| {
        let scope = Scope::Strided {
            size: group,
            stride: 1,
        };
        let [mut gathers, mut scatters] = [0, 0];
        for op in &program.ops {
            match op.kind {
                OpKind::AllGather { scope: of, bytes } if of == scope => gathers += bytes,
                OpKind::ReduceScatter { scope: of, bytes } if of == scope => scatters += bytes,
                _ => {}
            }
        }
        // In tokens of the group: two sequences a GPU, two bytes a channel.
        let tokens = 2 * 4_096 * u64::from(group) * hidden * 2;
        [gathers, scatters].map(|bytes| bytes / tokens)
    };
    for group in [2, 8] {
        let forward = shared(&model, Phase::Forward, u64::from(group));
        assert_eq!(of_group(&forward, group), [2 * layers + 1; 2]);
        let training = shared(&model, Phase::Training, u64::from(group));
        let once = 2 * layers + 1;
        assert_eq!(of_group(&training, group), [3 * once, 2 * once]);
        // Gradients of a GPU's parameters are summed over those that hold the same, of norms also over the group.
        let sums = training.ops.iter().filter_map(|op| match op.kind {
            OpKind::AllReduce { scope, bytes } => Some((scope.group_size(16) as u64, bytes)),
            _ => None,
        });
        let (mut replicas, mut norms) = (0, 0);
        for (size, bytes) in sums {
            let (sum, expected) = match size == 16 / u64::from(group) {
                true => (&mut replicas, 16 / u64::from(group)),
                false => (&mut norms, u64::from(group)),
            };
            assert_eq!(size, expected);
            *sum += bytes;
        }
        let held = training.buffers[0].bytes.get(0) / 2;
        assert_eq!((replicas, norms), (4 * held, 4 * hidden * (2 * layers + 1)));
    }
    let alone = shared(&model, Phase::Training, 1);
    let meets = |op: &&crate::ir::Op| matches!(op.kind, OpKind::AllGather { .. });
    assert_eq!(alone.ops.iter().filter(meets).count(), 0);
}

#[test]
fn a_group_that_does_not_divide_nodes_and_heads_is_refused() {
    let (model, hardware, gpus) = lab("qwen3-235b-a22b", 16);
    let prices = Analytic::new(&hardware).unwrap();
    for (tensor_parallel, fits) in [(0, false), (3, false), (8, false), (4, true)] {
        let run = ModelRun {
            model: &model,
            hardware: &hardware,
            prices: &prices,
            gpus,
            gpus_per_node: 8,
            batch: 1,
            phase: Phase::Forward,
            saving: MemorySaving::default(),
            tensor_parallel,
        };
        let error = step(&run, &Variant::Moe(Strategy::fairseq())).err();
        let field = error.map(|error| error.field);
        assert_eq!(field, (!fits).then_some("tensor-parallel"));
    }
}

#[test]
fn mistakes_in_a_config_name_the_field() {
    let check = |text: &str, field: &str| {
        let error = from_config(text, "x", "x", 128).unwrap_err();
        assert_eq!(error.field, field, "{error}");
    };
    check("{", "");
    check("[]", "");
    check(r#"{"model_type": "bert"}"#, "model_type");
    check(r#"{"architectures": ["X"]}"#, "model_type");
    let mixtral = include_str!("configs/mixtral-8x7b.json");
    check(&mixtral.replace("4096", "-1"), "hidden_size");
    check(&mixtral.replace("4096", "1e3"), "hidden_size");
    check(
        &mixtral.replace("\"num_hidden_layers\": 32,", ""),
        "num_hidden_layers",
    );
    check(
        &mixtral.replace("\"num_experts_per_tok\": 2", "\"num_experts_per_tok\": 9"),
        "num_experts_per_tok",
    );
    check(
        &mixtral.replace("\"num_key_value_heads\": 8", "\"num_key_value_heads\": 7"),
        "num_key_value_heads",
    );
}
