//! Whole-layer figures: Table 2, Figure 14, Table 5.

use super::{Case, case};
use crate::validate::lab::{
    Lab, adaptive_pipelining, fast_kernels, square_layer, table2_layer, tutel,
};
use moeplan_sim::spec::{AllToAll, LayerSpec, Layout, Strategy};

pub(super) fn table2() -> Vec<Case> {
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

pub(super) fn figure14() -> Vec<Case> {
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

pub(super) fn table5() -> Vec<Case> {
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
