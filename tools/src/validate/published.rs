//! Every published figure of the paper that we were given, and how to simulate it.

use super::lab::{
    Lab, adaptive_pipelining, fast_kernels, square_layer, table2_layer, table6_layers,
    table6_times, tutel,
};
use super::{Outcome, Status};
use moeplan_sim::cost::gemm::GemmShape;
use moeplan_sim::spec::{AllToAll, Choice, DType, Experts, LayerSpec, Layout, SpecError, Strategy};
use rayon::prelude::*;

type Simulate = Box<dyn Fn(&Lab) -> Result<f64, SpecError> + Send + Sync>;

struct Case {
    id: String,
    source: &'static str,
    quantity: String,
    unit: &'static str,
    published: f64,
    status: Status,
    goal: Option<f64>,
    note: &'static str,
    simulate: Option<Simulate>,
}

/// All published cases, simulated in `lab`, in the order of the paper.
///
/// # Errors
/// A setting the simulator cannot run.
pub fn outcomes(lab: &Lab) -> Result<Vec<Outcome>, SpecError> {
    let mut cases = Vec::new();
    cases.extend(table2());
    cases.extend(figure14());
    cases.extend(table5());
    cases.extend(figure13());
    cases.extend(figure12());
    cases.extend(first_version());
    cases.extend(repository_plot());
    cases.extend(not_simulated());
    let mut outcomes: Vec<Outcome> = cases
        .par_iter()
        .map(|case| case.run(lab))
        .collect::<Result<_, _>>()?;
    let at = outcomes
        .iter()
        .position(|outcome| outcome.id.starts_with("fig13"))
        .unwrap_or(outcomes.len());
    outcomes.splice(at..at, table6(lab)?);
    Ok(outcomes)
}

impl Case {
    fn run(&self, lab: &Lab) -> Result<Outcome, SpecError> {
        let simulated = self
            .simulate
            .as_ref()
            .map(|simulate| simulate(lab))
            .transpose()?;
        Ok(Outcome {
            id: self.id.clone(),
            source: self.source.into(),
            quantity: self.quantity.clone(),
            unit: self.unit,
            published: self.published,
            simulated,
            relative_error: simulated.map(|ours| relative(self.unit, ours, self.published)),
            status: self.status,
            goal: self.goal,
            note: self.note.into(),
        })
    }
}

/// Ours over theirs less one; for gains in percent the error of the ratio of times behind them.
fn relative(unit: &str, ours: f64, theirs: f64) -> f64 {
    match unit {
        "%" => (100.0 + ours) / (100.0 + theirs) - 1.0,
        _ => ours / theirs - 1.0,
    }
}

fn case(
    id: impl Into<String>,
    source: &'static str,
    quantity: impl Into<String>,
    unit: &'static str,
    published: f64,
    simulate: impl Fn(&Lab) -> Result<f64, SpecError> + Send + Sync + 'static,
) -> Case {
    Case {
        id: id.into(),
        source,
        quantity: quantity.into(),
        unit,
        published,
        status: Status::Predicted,
        goal: None,
        note: "",
        simulate: Some(Box::new(simulate)),
    }
}

impl Case {
    fn goal(self, goal: f64) -> Case {
        Case {
            goal: Some(goal),
            ..self
        }
    }

    fn fitted(self, note: &'static str) -> Case {
        Case {
            status: Status::Fitted,
            note,
            ..self
        }
    }

    fn excluded(self, note: &'static str) -> Case {
        Case {
            status: Status::Excluded,
            note,
            ..self
        }
    }

    fn note(self, note: &'static str) -> Case {
        Case { note, ..self }
    }
}

fn table2() -> Vec<Case> {
    let published = [
        (16, 560.9, 371.8, 189.1, 1.51),
        (256, 866.4, 386.3, 491.3, 1.76),
    ];
    let mut cases = Vec::new();
    for (gpus, layer, compute, all_to_all, ideal) in published {
        let step = move |lab: &Lab| lab.step(&table2_layer(), gpus, &tutel(AllToAll::Linear, 1));
        let id = |what: &str| format!("table2/{gpus}/{what}");
        let source = "Table 2";
        let of = |what: &str| format!("{what} of one step, {gpus} GPUs");
        let mut compute_case = case(
            id("compute"),
            source,
            of("compute"),
            "ms",
            compute,
            move |lab| Ok(step(lab)?.compute.as_ms_f64()),
        );
        let mut exchange_case = case(
            id("all-to-all"),
            source,
            of("All-to-All"),
            "ms",
            all_to_all,
            move |lab| Ok(step(lab)?.all_to_all.as_ms_f64()),
        );
        if gpus == 16 {
            compute_case = compute_case
                .fitted("software.gemm-efficiency, together with fig14/16/fast-kernels");
        } else {
            exchange_case = exchange_case.fitted("network.congestion.half-nodes");
        }
        cases.push(
            case(id("layer"), source, of("layer"), "ms", layer, move |lab| {
                Ok(step(lab)?.time.as_ms_f64())
            })
            .goal(0.15),
        );
        cases.push(compute_case.goal(0.15));
        cases.push(exchange_case.goal(0.15));
        cases.push(
            case(
                id("ideal-overlap"),
                source,
                format!("ideal overlap speed-up, {gpus} GPUs"),
                "x",
                ideal,
                move |lab| {
                    let step = step(lab)?;
                    let longest = step.compute.max(step.all_to_all).as_ms_f64();
                    Ok((step.compute + step.all_to_all).as_ms_f64() / longest)
                },
            )
            .goal(0.15),
        );
    }
    cases
}

fn figure14() -> Vec<Case> {
    let layer = LayerSpec::default;
    let source = "Figure 14";
    let ratio = move |gpus: u64, slow: Strategy, fast: Strategy| {
        move |lab: &Lab| Ok(lab.ms(&layer(), gpus, &slow)? / lab.ms(&layer(), gpus, &fast)?)
    };
    let fast = |a2a| fast_kernels(a2a, Layout::Conventional);
    let (linear, two_dh) = (AllToAll::Linear, AllToAll::TwoDh);
    let flexible = || fast_kernels(two_dh, Layout::Flexible);
    vec![
        case(
            "fig14/16/fast-kernels",
            source,
            "fast encode/decode over baseline, 16 GPUs",
            "x",
            3.52,
            ratio(16, Strategy::fairseq(), fast(linear)),
        )
        .goal(0.15)
        .fitted("software.gemm-efficiency, together with table2/16/compute"),
        case(
            "fig14/16/pipelining",
            source,
            "+ adaptive pipelining, 16 GPUs",
            "x",
            1.43,
            ratio(16, fast(linear), adaptive_pipelining()),
        )
        .goal(0.15),
        case(
            "fig14/16/all",
            source,
            "all features over baseline, 16 GPUs",
            "x",
            4.96,
            ratio(16, Strategy::fairseq(), adaptive_pipelining()),
        )
        .goal(0.10),
        case(
            "fig14/2048/fast-kernels",
            source,
            "fast encode/decode over baseline, 2,048 GPUs",
            "x",
            1.04,
            ratio(2048, Strategy::fairseq(), fast(linear)),
        )
        .goal(0.15),
        case(
            "fig14/2048/2dh",
            source,
            "+ 2DH, 2,048 GPUs",
            "x",
            4.25,
            ratio(2048, fast(linear), fast(two_dh)),
        )
        .goal(0.15)
        .fitted("network.congestion.peer-penalty"),
        case(
            "fig14/2048/flexible",
            source,
            "+ Flexible All-to-All, 2,048 GPUs",
            "x",
            1.24,
            ratio(2048, fast(two_dh), flexible()),
        )
        .goal(0.15),
        case(
            "fig14/2048/pipelining",
            source,
            "+ adaptive pipelining, 2,048 GPUs",
            "x",
            1.04,
            ratio(2048, flexible(), adaptive_pipelining()),
        )
        .goal(0.15),
        case(
            "fig14/2048/all",
            source,
            "all features over baseline, 2,048 GPUs",
            "x",
            5.75,
            ratio(2048, Strategy::fairseq(), adaptive_pipelining()),
        )
        .goal(0.10)
        .fitted("contains fig14/2048/2dh, which peer-penalty is fitted to"),
    ]
}

fn table5() -> Vec<Case> {
    let published = [(4_096, 3.7, 2.9), (16_384, 16.3, 4.0), (32_768, 57.9, 5.7)];
    let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
    let mut cases = Vec::new();
    for (tokens, fairseq, tutel_gib) in published {
        let memory = move |strategy: Strategy| {
            move |lab: &Lab| {
                Ok(gib(lab
                    .step(&square_layer(tokens, 1.0), 16, &strategy)?
                    .memory_bytes))
            }
        };
        let note = "GPUs not stated; simulated on 16";
        cases.push(
            case(
                format!("table5/{tokens}/fairseq"),
                "Table 5",
                format!("memory of one layer, Fairseq, {tokens} tokens"),
                "GiB",
                fairseq,
                memory(Strategy::fairseq()),
            )
            .goal(0.15)
            .note(note),
        );
        cases.push(
            case(
                format!("table5/{tokens}/tutel"),
                "Table 5",
                format!("memory of one layer, Tutel, {tokens} tokens"),
                "GiB",
                tutel_gib,
                memory(tutel(AllToAll::Linear, 1)),
            )
            .goal(0.15)
            .note(note),
        );
    }
    cases
}

/// Average and largest gain of adaptive (d, a) over each static choice, in percent.
fn table6(lab: &Lab) -> Result<Vec<Outcome>, SpecError> {
    let published: [(u64, [[f64; 4]; 2], [[f64; 4]; 2]); 3] = [
        (
            16,
            [[20.0, 2.0, 2.0, 11.0], [101.0, 98.0, 100.0, 106.0]],
            [[60.0, 32.0, 50.0, 176.0], [149.0, 139.0, 142.0, 184.0]],
        ),
        (
            64,
            [[13.0, 1.0, 5.0, 15.0], [28.0, 25.0, 27.0, 34.0]],
            [[55.0, 23.0, 42.0, 161.0], [70.0, 54.0, 41.0, 109.0]],
        ),
        (
            256,
            [[20.0, 27.0, 54.0, 107.0], [12.0, 20.0, 34.0, 11.0]],
            [[100.0, 160.0, 317.0, 599.0], [73.0, 139.0, 193.0, 182.0]],
        ),
    ];
    let layers = table6_layers();
    let mut outcomes = Vec::new();
    for (gpus, average, largest) in published {
        let times: Vec<_> = layers
            .par_iter()
            .map(|layer| table6_times(lab, layer, gpus))
            .collect::<Result<_, SpecError>>()?;
        for (choice, (name, degree)) in ["linear", "2dh"]
            .into_iter()
            .flat_map(|name| [1, 2, 4, 8].map(|degree| (name, degree)))
            .enumerate()
        {
            let gains = times.iter().map(|model| {
                let best = model.iter().min().map_or(0.0, |time| time.as_secs_f64());
                100.0 * (model[choice].as_secs_f64() / best - 1.0)
            });
            let gains: Vec<f64> = gains.collect();
            let mean = gains.iter().sum::<f64>() / gains.len() as f64;
            let most = gains.iter().copied().fold(0.0, f64::max);
            let (row, column) = (choice / 4, choice % 4);
            let near = if gpus == 256 { None } else { Some(0.08) };
            for (what, ours, theirs, goal) in [
                ("average", mean, average[row][column], near),
                ("largest", most, largest[row][column], None),
            ] {
                outcomes.push(Outcome {
                    id: format!("table6/{gpus}/{name}-{degree}/{what}"),
                    source: "Table 6".into(),
                    quantity: format!(
                        "{what} gain of adaptive over {name}, degree {degree}, {gpus} GPUs"
                    ),
                    unit: "%",
                    published: theirs,
                    simulated: Some(ours),
                    relative_error: Some(relative("%", ours, theirs)),
                    status: Status::Predicted,
                    goal,
                    note: String::new(),
                });
            }
        }
    }
    Ok(outcomes)
}

fn figure13() -> Vec<Case> {
    [(4.0, 39.0), (8.0, 57.0)]
        .into_iter()
        .map(|(factor, published)| {
            case(
                format!("fig13/f{factor}"),
                "Figure 13",
                format!("largest gain of adaptive pipelining over degree 1, f = {factor}"),
                "%",
                published,
                move |lab| {
                    let mut most: f64 = 0.0;
                    for gpus in [16, 32, 64, 128, 256] {
                        let layer = square_layer(4_096, factor);
                        let adaptive = lab.ms(&layer, gpus, &adaptive_pipelining())?;
                        let static_choice = lab.ms(&layer, gpus, &tutel(AllToAll::Linear, 1))?;
                        most = most.max(100.0 * (static_choice / adaptive - 1.0));
                    }
                    Ok(most)
                },
            )
            .note("GPUs not stated; the largest over 16 to 256, against linear at degree 1")
        })
        .collect()
}

/// The layers of Figure 12 at capacity factor `f`: best r of a step on 64 GPUs.
fn figure12_r(lab: &Lab, tokens: u64, hidden_dim: u64, factor: f64) -> Result<u64, SpecError> {
    let layer = LayerSpec {
        tokens_per_step: tokens,
        hidden_dim,
        experts: Experts::Total(16),
        capacity_factor: factor,
        ..LayerSpec::default()
    };
    Ok(lab
        .step(
            &layer,
            64,
            &Strategy {
                adaptive_r: Choice::Auto,
                ..adaptive_pipelining()
            },
        )?
        .plan
        .adaptive_r)
}

fn figure12() -> Vec<Case> {
    let factors = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
    let base = case(
        "fig12/base",
        "Figure 12",
        "Base: capacity factors of 1 to 8 with best r in {0, 1}",
        "of 8",
        8.0,
        move |lab| {
            let mut inside = 0.0;
            for factor in factors {
                inside += f64::from(u8::from(figure12_r(lab, 4_096, 2_048, factor)? <= 1));
            }
            Ok(inside)
        },
    );
    let large = case(
        "fig12/large",
        "Figure 12",
        "Large: values of best r over capacity factors 1 to 8, at least",
        "values",
        3.0,
        move |lab| {
            let mut seen = std::collections::BTreeSet::new();
            for factor in factors {
                seen.insert(figure12_r(lab, 1_024, 32_768, factor)?);
            }
            Ok(seen.len() as f64)
        },
    );
    let order = case(
        "fig12/order",
        "Figure 12",
        "Large: best r never rises with capacity, then DP: steps of f in that order",
        "of 7",
        7.0,
        move |lab| {
            let mut ordered = 0.0;
            // DP stands for the smallest r: nothing of the tokens travels.
            let mut previous = figure12_r(lab, 1_024, 32_768, factors[0])?;
            for factor in &factors[1..] {
                let next = figure12_r(lab, 1_024, 32_768, *factor)?;
                ordered += f64::from(u8::from(next <= previous));
                previous = next;
            }
            Ok(ordered)
        },
    );
    let setting = "samples/step taken as tokens a GPU and step";
    vec![
        base.note(setting),
        large.excluded(
            "the text says `more values`, no number; samples/step taken as tokens a GPU and step",
        ),
        order.note(setting),
    ]
}

fn first_version() -> Vec<Case> {
    let source = "First version of the paper";
    let products = |lab: &Lab, batch: u64, rows: u64| {
        let shape = GemmShape::batched(batch, rows, 2_048, 2_048, DType::Fp16).sharing(2);
        lab.hardware.gpu.gemm.estimate(&shape).time.as_ms_f64()
    };
    vec![
        case("v1/small-batch-throughput", source, "throughput of the batched GEMM (2048, E_g, 8, M) over (1, E_g, 16384, M)", "%-share", 8.8, move |lab| {
            Ok(100.0 * products(lab, 2, 16_384) / products(lab, 4_096, 8))
        })
        .note("FP16; E_g = 2, M = V = 2048"),
        case("v1/expert-compute", source, "expert compute at 2,048 GPUs", "ms", 30.2, move |lab| Ok(2.0 * products(lab, 4_096, 8)))
            .excluded("number type not stated: 206 TFLOPS on one GPU rules out TF32, so FP16; two products, nothing else counted"),
        case("v1/2dh", source, "2DH over linear All-to-All on 2,048 GPUs, at most", "x", 20.7, |lab| {
            let mut most: f64 = 0.0;
            for tokens in [128, 1_024, 4_096, 16_384] {
                let layer = LayerSpec { tokens_per_step: tokens, ..LayerSpec::default() };
                let time = |a2a| Ok::<f64, SpecError>(lab.step(&layer, 2_048, &tutel(a2a, 1))?.all_to_all.as_ms_f64());
                most = most.max(time(AllToAll::Linear)? / time(AllToAll::TwoDh)?);
            }
            Ok(most)
        })
        .excluded("message size not stated; the largest over 128 to 16,384 tokens a step"),
    ]
}

fn repository_plot() -> Vec<Case> {
    let published = [
        (16, 0.17, 0.06, 0.06),
        (64, 0.20, 0.09, 0.09),
        (256, 0.22, 0.10, 0.11),
        (2_048, 2.36, 2.20, 0.45),
    ];
    let mut cases = Vec::new();
    for (gpus, baseline, linear, two_dh) in published {
        let strategies = [
            ("deepspeed", baseline, Strategy::fairseq()),
            (
                "linear",
                linear,
                fast_kernels(AllToAll::Linear, Layout::Conventional),
            ),
            (
                "2dh",
                two_dh,
                fast_kernels(AllToAll::TwoDh, Layout::Conventional),
            ),
        ];
        for (name, seconds, strategy) in strategies {
            cases.push(
                case(
                    format!("plot2022/{gpus}/{name}"),
                    "Repository plot, February 2022",
                    format!("step time, {name}, {gpus} GPUs"),
                    "s",
                    seconds,
                    move |lab| Ok(lab.ms(&LayerSpec::default(), gpus, &strategy)? / 1e3),
                )
                .excluded(
                    "setting not stated, read to +-0.03 s; simulated with the layer of Figure 14",
                ),
            );
        }
    }
    cases
}

/// Figures whose setting is not stated, or that need a whole model.
fn not_simulated() -> Vec<Case> {
    let row = |id: String, source: &'static str, quantity: String, unit, published, note| Case {
        id,
        source,
        quantity,
        unit,
        published,
        status: Status::Excluded,
        goal: None,
        note,
        simulate: None,
    };
    let mut cases = Vec::new();
    let unstated = "setting not stated in full (GPUs, k and f of each point)";
    for (id, quantity, published) in [
        ("fig3/least", "EP+MP against EP+DP, least difference", 7.39),
        (
            "fig3/most",
            "EP+MP against EP+DP, largest difference",
            27.76,
        ),
    ] {
        cases.push(row(
            id.into(),
            "Figure 3",
            quantity.into(),
            "%",
            published,
            unstated,
        ));
    }
    for (id, quantity, published) in [
        (
            "intro/least",
            "gain of adaptive switching on one layer, least",
            1.35,
        ),
        (
            "intro/most",
            "gain of adaptive switching on one layer, most",
            14.57,
        ),
        (
            "v1/adaptive-parallelism",
            "gain of adaptive parallelism, at most",
            1.74,
        ),
        ("v1/pipelining", "gain of pipelining, at most", 2.00),
    ] {
        cases.push(row(
            id.into(),
            "Introduction and first version",
            quantity.into(),
            "x",
            published,
            unstated,
        ));
    }
    let naive = "the naive hierarchical All-to-All is no strategy of ours";
    for (nodes, published) in [(8, 0.6), (2_048, 5.0)] {
        let quantity = format!("naive intra-node exchange of 128 MiB, n = {nodes}");
        cases.push(row(
            format!("section4/naive/{nodes}"),
            "Section 4.2",
            quantity,
            "ms",
            published,
            naive,
        ));
    }
    let whole = "needs a whole model: issue 7";
    let images = [
        (8, [(291.0, 1198.0), (240.0, 507.0), (274.0, 1053.0)]),
        (32, [(288.0, 1195.0), (162.0, 455.0), (249.0, 892.0)]),
        (128, [(256.0, 1103.0), (146.0, 375.0), (226.0, 792.0)]),
    ];
    for (gpus, systems) in images {
        for (name, (train, infer)) in ["dense", "fairseq", "tutel"].into_iter().zip(systems) {
            for (what, published) in [("train", train), ("infer", infer)] {
                let quantity = format!("SwinV2-MoE-B, {name}, {what}, {gpus} GPUs");
                cases.push(row(
                    format!("table7/{gpus}/{name}/{what}"),
                    "Table 7",
                    quantity,
                    "images/s",
                    published,
                    whole,
                ));
            }
        }
    }
    let models = [
        ("S-dense", 350.0, 1604.0),
        ("S-E8", 292.0, 1150.0),
        ("S-E32", 295.0, 1159.0),
        ("B-dense", 288.0, 1195.0),
        ("B-E8", 247.0, 893.0),
        ("B-E32", 249.0, 892.0),
        ("B-E32-k2", 206.0, 679.0),
    ];
    for (name, train, infer) in models {
        for (what, published) in [("train", train), ("infer", infer)] {
            cases.push(row(
                format!("table12/{name}/{what}"),
                "Tables 11, 12",
                format!("SwinV2 {name}, {what}"),
                "images/s",
                published,
                whole,
            ));
        }
    }
    for (factor, published) in [("1.25", 839.0), ("0.5", 1001.0)] {
        let quantity = format!("SwinV2-MoE-B inference at f = {factor}");
        cases.push(row(
            format!("table12/f{factor}"),
            "Tables 11, 12",
            quantity,
            "images/s",
            published,
            whole,
        ));
    }
    cases
}
