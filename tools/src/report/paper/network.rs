//! Links and All-to-Alls.

use super::{curve, over_scales};
use crate::command::collective::all_to_all_time;
use crate::error::Error;
use crate::output::chart::Lines;
use crate::report::{Figure, lines};
use crate::validate::lab::Lab;
use moeplan_sim::cost::nccl::{CollectiveKind, Nccl};
use moeplan_sim::spec::AllToAll;

const MIB: u64 = 1 << 20;

pub(super) fn figure16a(lab: &Lab) -> Result<Figure, Error> {
    let nccl = Nccl::new(lab.hardware.collectives.clone(), None)?;
    let kib = (0..=12).map(|power| f64::from(1 << power));
    let written = curve("RDMA write, one NIC", kib, |kib| {
        Ok::<_, Error>(nccl.write_rate(1024 * kib as u64).gbps())
    })?;
    lines(
        "figure-16a",
        &Lines {
            title: "Bandwidth of a NIC by message size",
            x: "KiB a message",
            y: "GB/s",
            curves: &[written],
            log_x: true,
            ..Lines::default()
        },
    )
}

pub(super) fn figure16b(lab: &Lab) -> Result<Figure, Error> {
    let mut curves = Vec::new();
    for mib in [1, 32, 256, 1_024] {
        let scales = over_scales().filter(|&gpus| gpus >= 64.0);
        curves.push(curve(format!("{mib} MiB"), scales, |gpus| {
            let bytes = mib * MIB;
            let time = all_to_all_time(AllToAll::Linear, bytes, gpus as usize, &lab.hardware)?;
            Ok::<_, Error>(CollectiveKind::AllToAll.busbw_gbps(bytes, gpus as usize, time))
        })?);
    }
    lines(
        "figure-16b",
        &Lines {
            title: "Bus bandwidth of the linear All-to-All",
            x: "GPUs",
            y: "GB/s",
            curves: &curves,
            log_x: true,
            log_y: true,
            ..Lines::default()
        },
    )
}

pub(super) fn figure18(lab: &Lab) -> Result<Vec<Figure>, Error> {
    let figure = |mib: u64| {
        let mut curves = Vec::new();
        for (name, algorithm) in [
            ("linear", AllToAll::Linear),
            ("2DH", AllToAll::TwoDh),
            ("2DH fused, LL128", AllToAll::TwoDhLl128),
        ] {
            let scales = over_scales().filter(|&gpus| gpus >= 64.0);
            curves.push(curve(name, scales, |gpus| {
                let time = all_to_all_time(algorithm, mib * MIB, gpus as usize, &lab.hardware)?;
                Ok::<_, Error>(time.as_ms_f64())
            })?);
        }
        lines(
            &format!("figure-18-{mib}"),
            &Lines {
                title: &format!("All-to-All of {mib} MiB a GPU"),
                x: "GPUs",
                y: "ms",
                curves: &curves,
                log_x: true,
                log_y: true,
                ..Lines::default()
            },
        )
    };
    [1, 32, 256].into_iter().map(figure).collect()
}
