//! Greedy replication and packing, as DeepSeek describes its expert-parallelism load balancer: the
//! expert with the most load a copy gets the next copy; copies go, heaviest first, to the least loaded
//! rank that has room. Hierarchical: groups of experts are packed onto nodes first, copies are made within a node.

/// Packs `items` (loads) into `bins` of `items.len() / bins` each: heaviest first, to the lightest bin
/// with room. Returns the bin of every item. Ties go to the lower number.
pub(super) fn pack(items: &[f64], bins: usize) -> Vec<usize> {
    let room = items.len() / bins;
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by(|&a, &b| items[b].total_cmp(&items[a]).then(a.cmp(&b)));
    let (mut load, mut held) = (vec![0.0; bins], vec![0usize; bins]);
    let mut bin_of = vec![0; items.len()];
    for item in order {
        let open = (0..bins).filter(|&bin| held[bin] < room);
        let bin = open
            .min_by(|&a, &b| f64::total_cmp(&load[a], &load[b]))
            .expect("bins hold all items together");
        bin_of[item] = bin;
        load[bin] += items[item];
        held[bin] += 1;
    }
    bin_of
}

/// Copies of every expert, `slots` in all: each at least once, and the next copy always to the expert with
/// the most load a copy.
pub(super) fn replicate(loads: &[f64], slots: usize) -> Vec<usize> {
    let mut copies = vec![1usize; loads.len()];
    for _ in loads.len()..slots {
        let share = |expert: usize| loads[expert] / copies[expert] as f64;
        let most = (0..loads.len()).reduce(|best, expert| {
            if share(expert) > share(best) {
                expert
            } else {
                best
            }
        });
        if let Some(expert) = most {
            copies[expert] += 1;
        }
    }
    copies
}

/// Experts by slot for `ranks` ranks of `slots_per_rank`, on loads of all experts.
pub(super) fn global(loads: &[f64], ranks: usize, slots_per_rank: usize) -> Vec<u32> {
    let experts: Vec<usize> = (0..loads.len()).collect();
    spread(loads, &experts, ranks, slots_per_rank)
}

/// As [`global`], each node on its own once `groups` groups of neighbouring experts are packed onto
/// `nodes` nodes. Falls back to [`global`] where groups do not divide evenly.
pub(super) fn hierarchical(
    loads: &[f64],
    groups: usize,
    nodes: usize,
    ranks: usize,
    slots_per_rank: usize,
) -> Vec<u32> {
    let even = groups > 0 && loads.len().is_multiple_of(groups) && groups.is_multiple_of(nodes);
    if !even || !ranks.is_multiple_of(nodes) {
        return global(loads, ranks, slots_per_rank);
    }
    let size = loads.len() / groups;
    let group_loads: Vec<f64> = loads.chunks(size).map(|group| group.iter().sum()).collect();
    let node_of = pack(&group_loads, nodes);
    let mut slots = Vec::with_capacity(ranks * slots_per_rank);
    for node in 0..nodes {
        let experts: Vec<usize> = (0..loads.len())
            .filter(|expert| node_of[expert / size] == node)
            .collect();
        slots.extend(spread(loads, &experts, ranks / nodes, slots_per_rank));
    }
    slots
}

/// Replicates and packs `experts` over `ranks` ranks.
fn spread(loads: &[f64], experts: &[usize], ranks: usize, slots_per_rank: usize) -> Vec<u32> {
    let own: Vec<f64> = experts.iter().map(|&expert| loads[expert]).collect();
    let copies = replicate(&own, ranks * slots_per_rank);
    let mut items = Vec::new();
    for (index, &count) in copies.iter().enumerate() {
        for _ in 0..count {
            items.push((experts[index] as u32, own[index] / count as f64));
        }
    }
    let weights: Vec<f64> = items.iter().map(|(_, load)| *load).collect();
    let rank_of = pack(&weights, ranks);
    let mut by_rank: Vec<Vec<u32>> = vec![Vec::new(); ranks];
    for ((expert, _), rank) in items.iter().zip(rank_of) {
        by_rank[rank].push(*expert);
    }
    by_rank.into_iter().flatten().collect()
}
