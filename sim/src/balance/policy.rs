//! The policies.

use super::{Arrangement, eplb};
use crate::spec::ResolvedLayer;

/// What a policy knows: steps that have run, never the one to come.
#[derive(Debug, Clone)]
pub struct Past<'a> {
    /// The layer on its world.
    pub layer: &'a ResolvedLayer,
    /// m.
    pub gpus_per_node: usize,
    /// Slots that every rank has.
    pub slots_per_rank: usize,
    /// Copies routed to every expert since the last decision.
    pub loads: &'a [f64],
    /// The same by source node, `[node * num_experts + expert]`.
    pub by_node: &'a [f64],
    /// The arrangement in force.
    pub current: &'a Arrangement,
}

impl Past<'_> {
    fn ranks(&self) -> usize {
        self.layer.world_size as usize
    }

    fn arrange(&self, experts: Vec<u32>) -> Arrangement {
        Arrangement::new(experts, self.slots_per_rank, self.loads.len())
    }
}

/// A placement and balancing policy.
pub trait Balancer: Send + Sync {
    /// Its name in tables.
    fn name(&self) -> &'static str;

    /// Slots a rank needs beyond its own experts.
    fn extra_slots(&self) -> usize {
        0
    }

    /// Whether it ever moves an expert.
    fn moves(&self) -> bool {
        true
    }

    /// Where experts should sit from here on.
    fn arrange(&self, past: &Past<'_>) -> Arrangement;
}

/// The layer's own placement, for good.
#[derive(Debug, Clone, Copy)]
pub struct Contiguous;

impl Balancer for Contiguous {
    fn name(&self) -> &'static str {
        "static"
    }

    fn moves(&self) -> bool {
        false
    }

    fn arrange(&self, past: &Past<'_>) -> Arrangement {
        past.current.clone()
    }
}

/// Greedy replication and packing (DeepSeek's EPLB).
#[derive(Debug, Clone, Copy)]
pub struct Eplb {
    /// Slots a rank has for copies.
    pub extra_slots: usize,
    /// Groups of experts that are packed onto nodes first; `None` packs globally.
    pub groups: Option<usize>,
}

impl Balancer for Eplb {
    fn name(&self) -> &'static str {
        match self.groups {
            None => "eplb",
            Some(_) => "eplb-hierarchical",
        }
    }

    fn extra_slots(&self) -> usize {
        self.extra_slots
    }

    fn arrange(&self, past: &Past<'_>) -> Arrangement {
        let (ranks, slots) = (past.ranks(), past.slots_per_rank);
        let experts = match self.groups {
            None => eplb::global(past.loads, ranks, slots),
            Some(groups) => {
                let nodes = ranks / past.gpus_per_node;
                eplb::hierarchical(past.loads, groups, nodes, ranks, slots)
            }
        };
        past.arrange(experts)
    }
}

/// FasterMoE's shadowing (He et al., `PPoPP` 2022): the most loaded experts are copied to every rank, which then
/// keeps its own rows of them. Theirs decides on the step at hand, ours on past ones; as many as there are slots
/// for, as long as each is above the mean load of a rank.
#[derive(Debug, Clone, Copy)]
pub struct Shadowing {
    /// Experts that can be shadowed at once.
    pub extra_slots: usize,
}

impl Balancer for Shadowing {
    fn name(&self) -> &'static str {
        "shadowing"
    }

    fn extra_slots(&self) -> usize {
        self.extra_slots
    }

    fn arrange(&self, past: &Past<'_>) -> Arrangement {
        let mean = past.loads.iter().sum::<f64>() / past.ranks() as f64;
        let mut hot: Vec<u32> = (0..past.loads.len() as u32)
            .filter(|&expert| past.loads[expert as usize] > mean)
            .collect();
        hot.sort_by(|&a, &b| {
            past.loads[b as usize]
                .total_cmp(&past.loads[a as usize])
                .then(a.cmp(&b))
        });
        hot.truncate(past.slots_per_rank - past.layer.local_experts as usize);
        let local = past.layer.local_experts as u32;
        let mut experts = Vec::new();
        for rank in 0..past.ranks() as u32 {
            let own = rank * local..(rank + 1) * local;
            experts.extend(own.clone());
            let spare = past.slots_per_rank - local as usize;
            let shadows = (0..spare).map(|slot| match hot.get(slot) {
                // A spare slot of its home, or none hot: an own expert again, which changes nothing.
                Some(&expert) if !own.contains(&expert) => expert,
                Some(_) | None => own.start,
            });
            experts.extend(shadows);
        }
        past.arrange(experts)
    }
}

/// Topology-aware: an expert goes to the node that sends it the most rows, as long as no rank gets more
/// than `slack` over the mean. Tokens return to their own rank after every layer, so that the affinity of an expert to
/// the experts of neighbouring layers is one to the nodes its tokens live on.
#[derive(Debug, Clone, Copy)]
pub struct Affinity {
    /// Load a rank may have over the mean, as a share.
    pub slack: f64,
}

impl Balancer for Affinity {
    fn name(&self) -> &'static str {
        "affinity"
    }

    fn arrange(&self, past: &Past<'_>) -> Arrangement {
        let (ranks, slots, experts) = (past.ranks(), past.slots_per_rank, past.loads.len());
        let limit = past.loads.iter().sum::<f64>() / ranks as f64 * (1.0 + self.slack);
        let mut order: Vec<usize> = (0..experts).collect();
        order.sort_by(|&a, &b| past.loads[b].total_cmp(&past.loads[a]).then(a.cmp(&b)));
        let mut load = vec![0.0; ranks];
        let mut held: Vec<Vec<u32>> = vec![Vec::new(); ranks];
        for expert in order {
            let own = past.loads[expert];
            let sent = |rank: usize| past.by_node[rank / past.gpus_per_node * experts + expert];
            let open = |rank: &usize| held[*rank].len() < slots;
            let within = (0..ranks)
                .filter(open)
                .filter(|&rank| load[rank] + own <= limit)
                .max_by(|&a, &b| {
                    sent(a)
                        .total_cmp(&sent(b))
                        .then(load[b].total_cmp(&load[a]))
                        .then(b.cmp(&a))
                });
            let lightest = || {
                (0..ranks)
                    .filter(open)
                    .min_by(|&a, &b| load[a].total_cmp(&load[b]))
            };
            let rank = within
                .or_else(lightest)
                .expect("slots hold all experts together");
            load[rank] += own;
            held[rank].push(expert as u32);
        }
        past.arrange(held.into_iter().flatten().collect())
    }
}

/// The policy called `name`, with `extra_slots` slots a rank for copies where it makes any, and `groups`
/// groups of experts where it packs those.
pub fn named(name: &str, extra_slots: usize, groups: usize) -> Option<Box<dyn Balancer>> {
    Some(match name {
        "static" => Box::new(Contiguous),
        "eplb" => Box::new(Eplb {
            extra_slots,
            groups: None,
        }),
        "eplb-hierarchical" => Box::new(Eplb {
            extra_slots,
            groups: Some(groups),
        }),
        "shadowing" => Box::new(Shadowing { extra_slots }),
        "affinity" => Box::new(Affinity { slack: 0.1 }),
        _ => return None,
    })
}
