//! MoE layers of a model that run alike, and where their tokens go.

use super::{ModelSpec, Moe};
use crate::compile::{Drops, Load, MoeRun, Plan, Steps};
use crate::spec::ResolvedLayer;

/// MoE layers of one shape that follow the same recorded layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MoeGroup {
    /// Their shape.
    pub moe: Moe,
    /// Which recorded layer they follow: of n, MoE layer i follows the (i mod n)-th.
    pub recorded: usize,
    /// How many they are.
    pub layers: u64,
}

/// The MoE layers of a model by group, in order of each group's first.
#[derive(Debug, Clone, PartialEq)]
pub struct MoeGroups {
    groups: Vec<MoeGroup>,
    /// The group of every MoE layer.
    of_layer: Vec<usize>,
}

impl MoeGroups {
    /// The groups of `model` whose MoE layers follow `recorded` layers in turn.
    pub fn new(model: &ModelSpec, recorded: usize) -> MoeGroups {
        let mut found = MoeGroups {
            groups: Vec::new(),
            of_layer: Vec::new(),
        };
        for (index, &moe) in model.moe_layers().enumerate() {
            let recorded = index % recorded.max(1);
            let alike = |group: &MoeGroup| (group.moe, group.recorded) == (moe, recorded);
            let group = found.groups.iter().position(alike).unwrap_or_else(|| {
                let layers = 0;
                found.groups.push(MoeGroup {
                    moe,
                    recorded,
                    layers,
                });
                found.groups.len() - 1
            });
            found.groups[group].layers += 1;
            found.of_layer.push(group);
        }
        found
    }

    /// The groups in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &MoeGroup> {
        self.groups.iter()
    }

    /// The group of an MoE layer.
    pub(crate) fn of(&self, layer: usize) -> usize {
        self.of_layer[layer]
    }

    /// Every MoE layer of the model under the load and the plan of its group.
    pub(crate) fn runs<'a>(
        &self,
        layers: &'a [ResolvedLayer],
        loads: &'a [Load],
        plans: &[Plan],
    ) -> Vec<MoeRun<'a>> {
        let run = |&group: &usize| MoeRun {
            layer: &layers[group],
            load: &loads[group],
            plan: plans[group],
        };
        self.of_layer.iter().map(run).collect()
    }

    /// What all layers drop, of the loads of their groups.
    pub(crate) fn drops(&self, layers: &[ResolvedLayer], loads: &[Load]) -> Drops {
        let copies = layers.iter().map(ResolvedLayer::routed_copies);
        let groups = self.groups.iter().zip(loads).zip(copies);
        Drops::sum(groups.map(|((group, load), copies)| (load, group.layers, copies)))
    }
}

/// Where the tokens of a model's MoE layers go, step by step.
#[derive(Debug, Clone)]
pub struct ModelRouting {
    /// MoE layers that go together.
    pub groups: MoeGroups,
    /// The steps of every group, as many in each.
    pub steps: Vec<Steps>,
}

impl ModelRouting {
    /// One step in which every expert of `model` gets the same number of tokens from every GPU.
    pub fn balanced(model: &ModelSpec) -> ModelRouting {
        let groups = MoeGroups::new(model, 1);
        let steps = groups.iter().map(|_| vec![None]).collect();
        ModelRouting { groups, steps }
    }
}
