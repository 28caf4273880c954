//! The first version of the paper, the repository's plot, and what is not simulated.

use super::{Case, case};
use crate::validate::Status;
use crate::validate::lab::{Lab, fast_kernels, tutel};
use moeplan_sim::cost::gemm::GemmShape;
use moeplan_sim::spec::{AllToAll, DType, LayerSpec, Layout, SpecError, Strategy};

pub(super) fn first_version() -> Vec<Case> {
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

pub(super) fn repository_plot() -> Vec<Case> {
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

/// Figures whose setting is not stated.
pub(super) fn not_simulated() -> Vec<Case> {
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
    cases
}
