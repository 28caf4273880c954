use super::*;
use proptest::prelude::*;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const LIBRARIES: [&str; 3] = ["nccl-2.27.3", "nccl-2.17.1", "nccl-2.10.3"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    collectives: NcclParams,
}

fn params() -> NcclParams {
    let text = include_str!("../../hardware/fitted/a100_nccl.toml");
    toml::from_str::<File>(text).unwrap().collectives
}

fn model(library: &str) -> Nccl {
    Nccl::new(params(), Some(library)).unwrap()
}

fn time(model: &Nccl, kind: CollectiveKind, bytes: u64, nodes: usize, local: usize) -> Time {
    model.estimate(kind, bytes, nodes * local, local).time
}

#[test]
fn a_port_carries_every_byte_that_is_not_its_own() {
    let port = Bandwidth::from_bytes_per_second(300e9).unwrap();
    let bound = |kind| port_bound(kind, 2_400_000_000, 8, port);
    // 7/8 of 2.4 GB at 300 GB/s: 7 ms; an all-reduce passes twice.
    assert_eq!(bound(CollectiveKind::AllToAll), Time::from_us(7_000));
    assert_eq!(bound(CollectiveKind::AllReduce), Time::from_us(14_000));
    assert_eq!(
        port_bound(CollectiveKind::AllGather, GIB, 1, port),
        Time::ZERO
    );
}

#[test]
fn the_tuner_switches_protocol_where_the_measured_times_jump() {
    let tuner = params().tuner;
    let check = |kind, gpus, bytes: u64, expected| {
        assert_eq!(
            tuner.protocol(kind, bytes as f64, gpus),
            expected,
            "{kind} {bytes} on {gpus}"
        );
    };
    use CollectiveKind::{AllGather, AllReduce, AllToAll};
    check(AllGather, 2, MIB, Protocol::Ll);
    check(AllGather, 2, 2 * MIB, Protocol::Simple);
    check(AllReduce, 2, MIB / 2, Protocol::Ll);
    check(AllReduce, 2, MIB, Protocol::Simple);
    check(AllGather, 8, 2 * MIB, Protocol::Ll);
    check(AllGather, 8, 8 * MIB, Protocol::Ll128);
    check(AllGather, 8, 16 * MIB, Protocol::Simple);
    check(AllToAll, 8, 4 * MIB, Protocol::Ll);
    check(AllToAll, 8, 8 * MIB, Protocol::Simple);
}

#[test]
fn one_remote_peer_cannot_fill_a_nic_and_no_number_of_them_exceeds_the_wire() {
    let model = model("nccl-2.17.1");
    let rate = |peers, congestion| model.nic_rate(64 * MIB, peers, congestion).rate.gbps();
    assert!((rate(1, 1.0) - 15.5).abs() < 0.1);
    assert!((rate(8, 1.0) - 20.2).abs() < 0.1);
    assert!(rate(100_000, 1.0) < 23.94);
    assert!((rate(8, 0.5) * 2.0 - rate(8, 1.0)).abs() < 1e-6);
    // No share at all is no crash.
    for broken in [0.0, -1.0, f64::NAN] {
        assert!(rate(8, broken) > 0.0);
    }
    // 1 KiB messages are bound by the message rate: 3.3 GB/s by RDMA write.
    assert!(model.nic_rate(KIB, 8, 1.0).rate.gbps() < 3.3);
}

#[test]
fn four_gpus_lie_between_two_and_eight() {
    for library in LIBRARIES {
        let model = model(library);
        for kind in CollectiveKind::ALL {
            // Between 1 and 16 MiB two GPUs run Simple already where more GPUs do not.
            for shift in (9..=19).chain(24..=30) {
                let on = |gpus| time(&model, kind, 1 << shift, 1, gpus);
                let case = format!("{library} {kind} 2^{shift}");
                assert!(on(2) <= on(4), "{case}: {} {}", on(2), on(4));
                assert!(on(4) <= on(8), "{case}: {} {}", on(4), on(8));
            }
        }
    }
}

#[test]
fn the_pieces_add_up_to_the_closed_form() {
    for library in LIBRARIES {
        let model = model(library);
        for message in [64, 4 * KIB, MIB, 64 * MIB] {
            for (nodes, local) in [(1, 8), (2, 1), (2, 8), (32, 8)] {
                let remote = (nodes - 1) * local;
                let nvlink = match local - 1 {
                    0 => Time::ZERO,
                    peers => model
                        .nvlink_rate(message, peers)
                        .rate
                        .time_for(message * peers as u64),
                };
                let nic = match remote {
                    0 => Time::ZERO,
                    peers => model
                        .nic_rate(message, peers, 1.0)
                        .rate
                        .time_for(message * peers as u64),
                };
                let latency = model.all_to_all_latency(local - 1, remote).time;
                let pieces = (latency + nvlink.max(nic)).as_secs_f64();
                let bytes = message * (nodes * local) as u64;
                let whole = time(&model, CollectiveKind::AllToAll, bytes, nodes, local);
                let error = pieces / whole.as_secs_f64() - 1.0;
                assert!(error.abs() < 1e-6, "{library} {nodes}x{local} {message}");
            }
        }
    }
}

#[test]
fn rings_on_eight_rails_come_close_to_eight_wires() {
    let model = model("nccl-2.17.1");
    for kind in [CollectiveKind::AllGather, CollectiveKind::AllReduce] {
        let busbw = kind.busbw_gbps(GIB, 16, time(&model, kind, GIB, 2, 8));
        assert!((180.0..8.0 * 23.94).contains(&busbw), "{kind} {busbw}");
    }
    // A small all-reduce takes the tree: its latency grows with the logarithm of the nodes.
    let small = |nodes| time(&model, CollectiveKind::AllReduce, KIB, nodes, 8).as_secs_f64();
    assert!(small(64) - small(32) < 1.01 * (small(4) - small(2)));
}

#[test]
fn nothing_to_move_takes_no_time() {
    let model = model("nccl-2.27.3");
    for kind in CollectiveKind::ALL {
        assert_eq!(time(&model, kind, 0, 2, 8), Time::ZERO);
        assert_eq!(time(&model, kind, GIB, 1, 1), Time::ZERO);
    }
}

#[test]
fn provenance_says_what_was_measured() {
    use CollectiveKind::{AllReduce, AllToAll};
    use Provenance::{Extrapolated, Fitted};
    let new = model("nccl-2.27.3");
    let old = model("nccl-2.10.3");
    let check = |model: &Nccl, kind, bytes, gpus, local, expected| {
        let found = model.estimate(kind, bytes, gpus, local).provenance;
        assert_eq!(found, expected, "{kind} {bytes} {gpus}/{local}");
    };
    check(&new, AllToAll, MIB, 4, 8, Fitted);
    check(&new, AllToAll, 8 * GIB, 8, 8, Extrapolated);
    check(&new, AllToAll, MIB, 16, 16, Extrapolated);
    check(&new, AllToAll, MIB, 16, 8, Fitted);
    check(&new, AllToAll, MIB, 32, 8, Extrapolated);
    check(&new, AllReduce, MIB, 16, 8, Extrapolated);
    check(&old, AllReduce, 8 * GIB, 8, 8, Fitted);
    check(&old, AllToAll, MIB, 8, 8, Extrapolated);
    assert_eq!(new.nic_rate(MIB, 8, 1.0).provenance, Fitted);
    assert_eq!(new.nic_rate(MIB, 248, 1.0).provenance, Extrapolated);
}

#[test]
fn an_unknown_library_is_answered_with_the_known_ones() {
    let error = Nccl::new(params(), Some("nccl-9")).unwrap_err().to_string();
    assert_eq!(
        error,
        "no library profile `nccl-9` in this preset; it has nccl-2.10.3, nccl-2.17.1, nccl-2.27.3"
    );
}

#[test]
fn every_unusable_parameter_is_named() {
    let mut broken = params();
    broken.nic.efficiency = 1.5;
    broken.intra.simple.all_gather.wire_ps_per_byte = f64::NAN;
    broken.intra.ll128.ramp_power = 3;
    let error = Nccl::new(broken, None).unwrap_err().to_string();
    for field in [
        "collectives.nic.efficiency",
        "collectives.intra.simple.all-gather.wire-ps-per-byte",
        "collectives.intra.ll128.ramp-power",
    ] {
        assert!(error.contains(field), "{error}");
    }
    let text = include_str!("../../hardware/fitted/a100_nccl.toml");
    let misspelt = text.replace("peer-half", "peer-haf");
    assert!(toml::from_str::<File>(&misspelt).is_err());
}

fn kinds() -> impl Strategy<Value = CollectiveKind> {
    proptest::sample::select(CollectiveKind::ALL.to_vec())
}

proptest! {
    #[test]
    fn more_bytes_never_take_less_time(
        kind in kinds(),
        library in proptest::sample::select(LIBRARIES.to_vec()),
        local in 1_usize..=8,
        nodes in proptest::sample::select(vec![1_usize, 2, 3, 8, 256]),
        magnitude in 0_u32..34,
        mantissa in 0_u64..1 << 20,
        more in 0_u64..1 << 22,
    ) {
        let model = model(library);
        let bytes = (1_u64 << magnitude) + (mantissa << magnitude >> 20);
        let at = |bytes| time(&model, kind, bytes, nodes, local);
        prop_assert!(at(bytes) <= at(bytes + 1));
        prop_assert!(at(bytes) <= at(bytes + more));
    }

    #[test]
    fn nothing_beats_the_port(
        kind in kinds(),
        library in proptest::sample::select(LIBRARIES.to_vec()),
        local in 2_usize..=8,
        nodes in 1_usize..=4,
        magnitude in 0_u32..36,
    ) {
        let model = model(library);
        let port = Bandwidth::from_bytes_per_second(300e9).unwrap();
        let bytes = 1_u64 << magnitude;
        // Over several nodes NVLink carries at least what stays on the node; a NIC is slower.
        let bound = port_bound(kind, bytes, if nodes == 1 { local } else { 2 }, port);
        prop_assert!(bound.as_ps() <= time(&model, kind, bytes, nodes, local).as_ps() + 1);
        let peers = local - 1;
        prop_assert!(model.nvlink_rate(bytes, peers).rate.gbps() <= 300.0 + 1e-9);
    }
}
