//! `plan`: what it recommends, and what it says where nothing can be.

use crate::cli::{done, json};
use moeplan::error::Exit;
use moeplan_tests::moeplan;
use serde_json::Value;

const LAYER: &str = "plan --tokens-per-step 1024 --model-dim 256 --hidden-dim 512";
const SMALL: &str = "plan --tokens-per-step 1024 --model-dim 256 --hidden-dim 512 --max-gpus 16";

fn number(value: &Value) -> f64 {
    value
        .as_f64()
        .unwrap_or_else(|| panic!("expected a number, found {value}"))
}

#[test]
fn the_recommended_plan_is_what_simulate_says_of_it() {
    let found = json(SMALL);
    let plan = &found["recommended"];
    let a2a = plan["all_to_all"].as_str().unwrap_or("linear");
    let alone = json(&format!(
        "simulate --tokens-per-step 1024 --model-dim 256 --hidden-dim 512 --gpus {} --adaptive-r {} \
         --pipeline-degree {} --all-to-all {a2a} --encode {} --layout {}",
        plan["gpus"],
        plan["adaptive_r"],
        plan["pipeline_degree"],
        plan["encode"].as_str().unwrap(),
        plan["layout"].as_str().unwrap(),
    ));
    let run = &alone["runs"][0];
    for name in [
        "step_time_ns",
        "memory_bytes_per_gpu",
        "exposed_communication_ns",
    ] {
        assert_eq!(plan[name], run[name], "{name}");
    }
}

#[test]
fn a_target_asks_for_the_cheapest_and_a_budget_for_the_fastest() {
    let fastest = json(SMALL);
    assert_eq!(fastest["goal"], "fastest");
    let most = number(&fastest["recommended"]["tokens_per_second"]);
    let half = json(&format!("{SMALL} --tokens-per-second {}", most / 2.0));
    assert_eq!(half["goal"], "cheapest");
    let plan = &half["recommended"];
    assert!(number(&plan["tokens_per_second"]) >= most / 2.0);
    for other in half["front"].as_array().unwrap() {
        assert!(
            number(&other["cost_per_billion_tokens"]) >= number(&plan["cost_per_billion_tokens"])
        );
    }
    let poor = json(&format!("{SMALL} --budget 20/hour"));
    assert_eq!(poor["goal"], "fastest");
    assert!(number(&poor["recommended"]["cost_per_hour"]) <= 20.0);
    assert_eq!(poor["recommended"]["gpus"], 4);
    let cheaper = json(&format!("{SMALL} --budget 20/hour --price reserved-3y"));
    assert!(number(&cheaper["recommended"]["gpus"]) > 4.0);
}

#[test]
fn nothing_on_the_front_is_better_than_another() {
    let found = json(&format!(
        "{SMALL} --try-capacity-factor 1,1.5,0 --try-dtype fp16,tf32"
    ));
    let front = found["front"].as_array().unwrap();
    let point = |plan: &Value| {
        [
            1.0 / number(&plan["tokens_per_second"]),
            number(&plan["gpus"]),
            number(&plan["cost_per_billion_tokens"]),
            number(&plan["memory_bytes_per_gpu"]),
            number(&plan["dropped_fraction"]),
        ]
    };
    for a in front {
        for b in front.iter().filter(|b| *b != a) {
            let (a, b) = (point(a), point(b));
            let better = a.iter().zip(&b).all(|(a, b)| a <= b);
            assert!(!better || a == b, "{a:?} {b:?}");
        }
    }
}

#[test]
fn what_cannot_be_met_is_told_with_how_far_off_it_is() {
    for (limits, limit) in [
        ("--step-time 1us", "step-time"),
        ("--memory 1GiB", "memory"),
        ("--budget 1/hour", "budget"),
        ("--budget 0.000001/1e9-tokens", "budget"),
        ("--tokens-per-second 1e15", "tokens-per-second"),
        ("--capacity-factor 0.5 --max-dropped 0.1", "max-dropped"),
    ] {
        let ran = moeplan(&format!("{SMALL} {limits} --format json"));
        assert_eq!(ran.exit, Exit::NoFeasiblePlan, "{limits}: {}", ran.stderr);
        let found: Value = serde_json::from_str(&ran.stdout).unwrap();
        assert!(found["recommended"].is_null() && found["front"].as_array().unwrap().is_empty());
        let worst = &found["nearest"]["violations"][0];
        assert_eq!(worst["limit"], limit, "{limits}");
        assert!(number(&worst["excess"]) > 0.0);
        let table = moeplan(&format!("{SMALL} {limits}"));
        assert!(
            table.stdout.contains("no plan meets all limits"),
            "{}",
            table.stdout
        );
        assert!(table.stdout.contains(" off"), "{}", table.stdout);
    }
}

#[test]
fn a_fixed_batch_is_shared_and_the_layers_tokens_are_not() {
    let shared = json(&format!("{LAYER} --global-batch 16384 --gpus 4,16"));
    for plan in shared["front"].as_array().unwrap() {
        assert_eq!(
            number(&plan["gpus"]) * number(&plan["tokens_per_gpu"]),
            16_384.0
        );
    }
    let each = json(&format!("{LAYER} --gpus 4,16"));
    for plan in each["front"].as_array().unwrap() {
        assert_eq!(plan["tokens_per_gpu"], 1024);
    }
    let odd = moeplan(&format!("{SMALL} --global-batch 1000003"));
    assert_eq!(
        odd.exit,
        Exit::Done,
        "one GPU takes any batch: {}",
        odd.stderr
    );
}

#[test]
fn the_winner_is_explained() {
    let found = json(&format!("{LAYER} --gpus 8,16 --trace digits --steps 2"));
    let shares: f64 = found["limiting"]
        .as_array()
        .unwrap()
        .iter()
        .map(|part| number(&part["share"]))
        .sum();
    assert!(
        (shares - 1.0).abs() < 1e-6,
        "the critical path is the step: {shares}"
    );
    let differs = |found: &Value| -> Vec<String> {
        let neighbours = found["neighbours"].as_array().unwrap().iter();
        let differs = |neighbour: &Value| neighbour["differs"].as_str().unwrap().to_owned();
        neighbours.map(differs).collect()
    };
    let check = |found: &Value, wanted: &[&str]| {
        let differs = differs(found);
        for wanted in wanted {
            assert!(
                differs.iter().any(|differs| differs.contains(wanted)),
                "{wanted}: {differs:?}"
            );
        }
    };
    check(&found, &["r = ", "encode", "layout", "GPUs", "decided by"]);
    let sharing = json(&format!(
        "{LAYER} --gpus 8,16 --adaptive-r 1 --all-to-all auto"
    ));
    check(
        &sharing,
        &[
            "pipelining degree",
            "all-to-all",
            "encode",
            "layout",
            "GPUs",
        ],
    );
    for sensitivity in found["sensitivities"].as_array().unwrap() {
        // The plan is chosen anew, so more never loses.
        assert!(number(&sensitivity["gain"]) >= 1.0, "{sensitivity}");
    }
}

#[test]
fn threads_and_bounds_change_nothing_but_the_work() {
    let args = format!("{SMALL} --try-dropless --trace digits --steps 2");
    let one = done(&format!("{args} --threads 1 --format json")).stdout;
    let many = done(&format!("{args} --threads 4 --format json")).stdout;
    assert_eq!(one, many);
    let (mut pruned, mut all) = (json(&args), json(&format!("{args} --exhaustive")));
    assert!(number(&pruned["simulated"]) < number(&all["simulated"]));
    assert_eq!(all["simulated"], all["candidates"]);
    for found in [&mut pruned, &mut all] {
        for key in ["simulated", "settings"] {
            found.as_object_mut().unwrap().remove(key);
        }
    }
    assert_eq!(pruned, all);
}

#[test]
fn mistakes_are_told() {
    for (args, wanted) in [
        ("--gpus 0", "1 to 65536"),
        ("--max-gpus 0", "--max-gpus"),
        ("--step-time 20", "such as 20ms"),
        ("--budget 20", "100/hour"),
        ("--tokens-per-second -1", ""),
        ("--tokens-per-second nan", "--tokens-per-second"),
        ("--max-dropped 2", "--max-dropped"),
        ("--cluster nowhere", "nowhere"),
        ("--cluster dgx-a100,dgx-a100", "twice"),
        ("--top-k 1,2", "--try-top-k"),
        ("--try-dtype fp8", "fp8"),
        ("--trace nowhere", "nowhere"),
        ("--routing zipf:x", "zipf"),
        ("--price-list nowhere.toml", "nowhere.toml"),
        ("--price free", "reserved-1y"),
        ("--gpus 16 --num-experts 7", "num-experts"),
    ] {
        let ran = moeplan(&format!("plan {args}"));
        assert_eq!(
            ran.exit,
            Exit::BadInput,
            "{args}: {}{}",
            ran.stdout,
            ran.stderr
        );
        assert!(ran.stderr.contains(wanted), "{args}: {}", ran.stderr);
    }
}

/// What `model` says of the plan that `plan` recommends for the same routing.
#[track_caller]
fn as_model_times_it(routing: &str, search: &str, figures: &[&str]) {
    let found = json(&format!(
        "plan --model olmoe-1b-7b --gpus 16,32 --shard-states {routing} {search}"
    ));
    let plan = &found["recommended"];
    let a2a = plan["all_to_all"].as_str().unwrap_or("linear");
    let alone = json(&format!(
        "model olmoe-1b-7b --shard-states --gpus {} --strategy tutel --adaptive-r {} --pipeline-degree {} \
         --all-to-all {a2a} --encode {} --layout {} --padding {} --policy {} {routing}",
        plan["gpus"],
        plan["adaptive_r"],
        plan["pipeline_degree"],
        plan["encode"].as_str().unwrap(),
        plan["layout"].as_str().unwrap(),
        plan["padding"].as_str().unwrap(),
        plan["policy"].as_str().unwrap(),
    ));
    let run = &alone["runs"][0];
    for &name in figures {
        assert_eq!(plan[name], run[name], "{name}");
    }
    assert_eq!(found["settings"]["model"]["preset"], "olmoe-1b-7b");
}

#[test]
fn a_whole_model_is_planned_as_model_times_it() {
    let all = ["step_time_ns", "memory_bytes_per_gpu", "tokens_per_second"];
    as_model_times_it("", "--tokens-per-second 100000", &all);
}

#[test]
fn a_whole_model_under_a_trace_is_planned_as_model_times_it() {
    let all = [
        "step_time_ns",
        "step_time_p95_ns",
        "memory_bytes_per_gpu",
        "dropped_fraction",
    ];
    let search = "--try-policy static --try-dropless";
    as_model_times_it("--trace digits --steps 3", search, &all);
}

#[test]
fn moe_layers_of_a_model_follow_the_recorded_ones_in_turn() {
    let step = |routing: &str| {
        let found = json(&format!(
            "model olmoe-1b-7b --gpus 16 --strategy fairseq --phase forward {routing}"
        ));
        assert_eq!(
            found["runs"][0]["steps"],
            if routing.contains("digits") { 2 } else { 1 }
        );
        number(&found["runs"][0]["step_time_ns"])
    };
    let of_layer = |layer: u32| step(&format!("--trace digits --steps 2 --trace-layer {layer}"));
    let all = step("--trace digits --steps 2");
    // 16 layers follow 3 recorded ones: 6, 5 and 5 of them.
    let mixed = (6.0 * of_layer(0) + 5.0 * of_layer(1) + 5.0 * of_layer(2)) / 16.0;
    assert!((all / mixed - 1.0).abs() < 0.005, "{all} {mixed}");
    assert!(step("") < all, "uneven routing pads more");
}

#[test]
fn experts_are_moved_where_that_pays() {
    let args = "plan --gpus 16 --num-experts 32 --tokens-per-step 4096 --routing zipf:1.2,drift=0.02 --steps 6 \
                --strategy tutel --adaptive-r 1 --padding dropless --phase forward --try-policy static";
    let (stay, moved) = (
        json(args),
        json(&format!("{args} --try-balance eplb,shadowing")),
    );
    let (stay, best) = (&stay["recommended"], &moved["recommended"]);
    assert_eq!(stay["balancing"], "static");
    assert_ne!(best["balancing"], "static");
    assert!(number(&best["step_time_ns"]) < number(&stay["step_time_ns"]));
    assert!(number(&best["memory_bytes_per_gpu"]) > 0.0);
    let neighbours = moved["neighbours"].as_array().unwrap();
    let stays = |row: &&Value| row["differs"] == "experts that stay";
    let stays = neighbours.iter().find(stays).unwrap();
    assert_eq!(stays["plan"]["step_time_ns"], stay["step_time_ns"]);
}

#[test]
fn bounds_change_nothing_of_a_whole_model() {
    for args in [
        "plan --model olmoe-1b-7b --gpus 8,16 --try-capacity-factor 1,1.25",
        "plan --model swinv2-moe-s --gpus 8,32 --phase forward --budget 100/hour",
        "plan --model olmoe-1b-7b --gpus 16 --global-batch 131072 --step-time 1ms",
        "plan --model olmoe-1b-7b --gpus 8,16 --trace digits --steps 2 --phase forward --strategy tutel \
         --try-balance eplb --padding dropless",
    ] {
        let of = |args: &str| {
            let ran = moeplan(&format!("{args} --format json"));
            let mut found: Value = serde_json::from_str(&ran.stdout).unwrap();
            found["simulated"].take();
            found["settings"]["plan"].take();
            (ran.exit, found)
        };
        assert_eq!(of(args), of(&format!("{args} --exhaustive")), "{args}");
    }
}

#[test]
fn a_whole_model_that_fits_nowhere_is_told_so() {
    let ran = moeplan("plan --model mixtral-8x7b --gpus 8 --format json");
    assert_eq!(ran.exit, Exit::NoFeasiblePlan, "{}", ran.stderr);
    let found: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(found["nearest"]["violations"][0]["limit"], "memory");
}

#[test]
fn what_would_make_a_model_fit_is_said_and_does() {
    let args = "plan --model mixtral-8x7b --gpus 16 --batch 2 --strategy tutel --try-policy static";
    let ran = moeplan(args);
    assert_eq!(ran.exit, Exit::NoFeasiblePlan, "{}", ran.stderr);
    let advice = "needs less memory with --shard-gradients, --recompute, --try-micro-batches, \
                  --try-tensor-parallel";
    assert!(ran.stdout.contains(advice), "{}", ran.stdout);
    let found = json(&format!("{args} --shard-gradients --recompute"));
    assert_eq!(found["settings"]["model"]["recompute"], true);
    assert!(number(&found["recommended"]["memory_bytes_per_gpu"]) < 80e9);
}

#[test]
fn gpus_share_weights_where_that_makes_a_model_fit() {
    let args = "plan --model mixtral-8x7b --gpus 16 --batch 2 --micro-batches 2 --shard-gradients --recompute \
                --strategy tutel --try-policy static";
    let found = json(&format!("{args} --try-tensor-parallel 1,2,8"));
    let exhaustive = json(&format!("{args} --try-tensor-parallel 1,2,8 --exhaustive"));
    for what in ["recommended", "front", "nearest"] {
        assert_eq!(found[what], exhaustive[what]);
    }
    let front = found["front"].as_array().unwrap();
    let memory = |group: u64| {
        let rows = front.iter().filter(|row| row["tensor_parallel"] == group);
        let bytes = rows.map(|row| number(&row["memory_bytes_per_gpu"]));
        bytes.fold(f64::INFINITY, f64::min)
    };
    assert!(memory(8) < memory(2) && memory(2) < memory(1), "{front:?}");
    // The same step as `model` has.
    let row = front
        .iter()
        .find(|row| row["tensor_parallel"] == 8)
        .unwrap();
    let args = format!(
        "model mixtral-8x7b --gpus 16 --batch 2 --micro-batches 2 --shard-gradients --recompute --tensor-parallel 8 \
         --strategy tutel --encode {} --layout {} --adaptive-r {} --pipeline-degree {} --all-to-all {} --padding {}",
        row["encode"].as_str().unwrap(),
        row["layout"].as_str().unwrap(),
        row["adaptive_r"],
        row["pipeline_degree"],
        row["all_to_all"].as_str().unwrap_or("linear"),
        row["padding"].as_str().unwrap(),
    );
    let run = &json(&args)["runs"][0];
    assert_eq!(run["step_time_ns"], row["step_time_ns"]);
    assert_eq!(run["memory_bytes_per_gpu"], row["memory_bytes_per_gpu"]);
}

#[test]
fn a_batch_is_cut_where_that_makes_it_fit() {
    let args = "plan --model mixtral-8x7b --gpus 16 --batch 8 --shard-gradients --strategy tutel \
                --try-policy static";
    let whole = moeplan(args);
    assert_eq!(whole.exit, Exit::NoFeasiblePlan, "{}", whole.stderr);
    let found = json(&format!("{args} --try-micro-batches 1,2,4,8"));
    let exhaustive = json(&format!("{args} --try-micro-batches 1,2,4,8 --exhaustive"));
    for what in ["recommended", "front", "nearest"] {
        assert_eq!(found[what], exhaustive[what]);
    }
    let best = &found["recommended"];
    let parts = best["micro_batches"].as_u64().unwrap();
    assert!(parts > 1, "{best}");
    // The very plan that is found when only that is asked for.
    let alone = json(&format!("{args} --micro-batches {parts}"));
    assert_eq!(alone["recommended"], *best);
}

#[test]
fn what_only_a_layer_has_does_not_go_with_a_model() {
    for (flags, blamed) in [
        ("--trace digitz", "--trace"),
        ("--trace digits --trace-layer 9", "--trace-layer"),
        ("--try-balance best", "--try-balance"),
        ("--try-balance eplb", "--try-balance: expected --trace"),
        ("--layer paper", "--layer"),
        ("--model-dim 64", "--layer"),
        ("--try-top-k 1,2", "--try-top-k"),
        ("--batch 0", "--batch"),
        (
            "--batch 2 --micro-batches 4",
            "--micro-batches: expected a divisor of the 2 items",
        ),
        (
            "--batch 2 --try-micro-batches 1,4",
            "--try-micro-batches: expected a divisor of the 2 items",
        ),
        (
            "--batch 2 --micro-batches 2 --phase forward",
            "--micro-batches: expected 1",
        ),
        (
            "--try-tensor-parallel 3",
            "--try-tensor-parallel: expected divisors of its 16",
        ),
        ("--tensor-parallel 0", "tensor-parallel"),
    ] {
        let ran = moeplan(&format!("plan --model olmoe-1b-7b --gpus 8 {flags}"));
        assert_eq!(ran.exit, Exit::BadInput, "{flags}");
        assert!(ran.stderr.contains(blamed), "{flags}: {}", ran.stderr);
    }
    let ran = moeplan("plan --gpus 8 --try-tensor-parallel 2");
    assert_eq!(ran.exit, Exit::BadInput);
    assert!(
        ran.stderr
            .contains("--try-tensor-parallel: expected --model")
    );
    let ran = moeplan("plan --batch 2 --gpus 8");
    assert_eq!(ran.exit, Exit::BadInput);
    assert!(ran.stderr.contains("--model"), "{}", ran.stderr);
}

#[test]
fn a_comparison_with_prices_costs_what_the_plan_does() {
    let found = json(SMALL);
    let plan = &found["recommended"];
    let a2a = plan["all_to_all"].as_str().unwrap_or("linear");
    let compare = |flags: &str| {
        json(&format!(
            "compare --tokens-per-step 1024 --model-dim 256 --hidden-dim 512 --gpus {} --adaptive-r {} \
             --pipeline-degree {} --all-to-all {a2a} --encode {} --layout {} --strategy tutel {flags}",
            plan["gpus"],
            plan["adaptive_r"],
            plan["pipeline_degree"],
            plan["encode"].as_str().unwrap(),
            plan["layout"].as_str().unwrap(),
        ))
    };
    let priced = &compare("--price on-demand")["runs"][0];
    for name in [
        "cost_per_hour",
        "cost_per_billion_tokens",
        "joules_per_token",
    ] {
        assert_eq!(plan[name], priced[name], "{name}");
    }
    let reserved = &compare("--price reserved-3y")["runs"][0];
    assert!(number(&reserved["cost_per_hour"]) < number(&priced["cost_per_hour"]));
    assert!(compare("")["runs"][0]["cost_per_hour"].is_null());
}
