//! A model's forward pass by its blocks: those that are alike have the same operations, so what only sums up
//! operations, and what only depends on neighbours, need not compile a block a hundred times.

use super::bound::{Floor, busiest_rank};
use crate::compile::MoeRun;
use crate::cost::CostModel;
use crate::ir::Program;
use crate::model::{ModelRun, ModelSpec, MoeGroups, Part, Work};
use crate::spec::{Phase, SpecError};

/// The distinct blocks of a model.
pub(super) struct Outline {
    /// Each alone, and how many the model has of it; the model's last block is the last.
    blocks: Vec<(Excerpt, u64)>,
    /// Those that follow each other.
    neighbours: Vec<Excerpt>,
}

/// Some parts of a model, and which MoE layers of it they are.
struct Excerpt {
    model: ModelSpec,
    moe: Vec<usize>,
}

/// A block: its parts, whichever block they are of, and its MoE layers with their groups.
struct Block<'a> {
    parts: &'a [Part],
    moe: Vec<usize>,
    groups: Vec<usize>,
}

impl Outline {
    /// The outline of a forward pass of `model`, where it is much less than the model. In training what is kept and the
    /// buckets of gradients tie all blocks together: there is none.
    pub(super) fn new(model: &ModelSpec, groups: &MoeGroups, phase: Phase) -> Option<Outline> {
        if phase == Phase::Training {
            return None;
        }
        let blocks = blocks(model, groups);
        let mut distinct: Vec<(usize, u64)> = Vec::new();
        let mut kinds = Vec::with_capacity(blocks.len());
        for (index, block) in blocks.iter().enumerate() {
            let kind = distinct
                .iter()
                .position(|&(of, _)| blocks[of].is_like(block));
            let kind = kind.unwrap_or_else(|| {
                distinct.push((index, 0));
                distinct.len() - 1
            });
            distinct[kind].1 += 1;
            kinds.push(kind);
        }
        let mut pairs: Vec<([usize; 2], usize)> = Vec::new();
        for (index, pair) in kinds.windows(2).enumerate() {
            let pair = [pair[0], pair[1]];
            if !pairs.iter().any(|(known, _)| *known == pair) {
                pairs.push((pair, index));
            }
        }
        let excerpt = |blocks: &[Block<'_>]| Excerpt::new(model, blocks);
        let outline = Outline {
            blocks: (distinct.iter())
                .map(|&(of, count)| (excerpt(&blocks[of..=of]), count))
                .collect(),
            neighbours: (pairs.iter())
                .map(|&(_, first)| excerpt(&blocks[first..first + 2]))
                .collect(),
        };
        let ends_with = kinds.last().is_some_and(|kind| kind + 1 == distinct.len());
        (ends_with && outline.parts() * 2 < model.parts.len()).then_some(outline)
    }

    fn parts(&self) -> usize {
        let blocks = self.blocks.iter().map(|(excerpt, _)| excerpt);
        let excerpts = blocks.chain(&self.neighbours);
        excerpts.map(|excerpt| excerpt.model.parts.len()).sum()
    }

    /// The floor of the program of `run` with `moe` on all its MoE layers, and that program's peak memory.
    pub(super) fn floor(
        &self,
        run: &ModelRun<'_>,
        moe: &[MoeRun<'_>],
        prices: &dyn CostModel,
    ) -> Result<(Floor, u64), SpecError> {
        let programs = self.blocks.iter().map(|(block, _)| block.program(run, moe));
        let programs = programs.collect::<Result<Vec<Program>, SpecError>>()?;
        // The bound is one rank's, whichever.
        let rank = programs.iter().find_map(busiest_rank).unwrap_or(0);
        let mut floor = Floor::default();
        let mut persistent_bytes = 0u64;
        for (program, (_, count)) in programs.iter().zip(&self.blocks) {
            floor = floor.then(Floor::on(rank, program, prices), *count);
            let bytes = program.persistent_bytes().saturating_mul(*count);
            persistent_bytes = persistent_bytes.saturating_add(bytes);
        }
        let mut transient_bytes = 0;
        for pair in &self.neighbours {
            let program = pair.program(run, moe)?;
            let transient = program.largest_peak_memory() - program.persistent_bytes();
            transient_bytes = transient_bytes.max(transient);
        }
        Ok((floor, persistent_bytes.saturating_add(transient_bytes)))
    }
}

impl Excerpt {
    fn new(model: &ModelSpec, blocks: &[Block<'_>]) -> Excerpt {
        let parts = blocks.iter().flat_map(|block| block.parts).copied();
        Excerpt {
            model: ModelSpec {
                parts: parts.collect(),
                ..model.clone()
            },
            moe: blocks
                .iter()
                .flat_map(|block| &block.moe)
                .copied()
                .collect(),
        }
    }

    fn program(&self, run: &ModelRun<'_>, moe: &[MoeRun<'_>]) -> Result<Program, SpecError> {
        let moe: Vec<MoeRun<'_>> = self.moe.iter().map(|&layer| moe[layer]).collect();
        run.program(&self.model, &moe)
    }
}

impl Block<'_> {
    fn is_like(&self, other: &Block<'_>) -> bool {
        let alike = |(a, b): (&Part, &Part)| (a.section, a.work) == (b.section, b.work);
        self.groups == other.groups
            && self.parts.len() == other.parts.len()
            && self.parts.iter().zip(other.parts).all(alike)
    }
}

fn blocks<'a>(model: &'a ModelSpec, groups: &MoeGroups) -> Vec<Block<'a>> {
    let mut layers = 0;
    let runs = model.parts.chunk_by(|a, b| a.block == b.block);
    let block = |parts: &'a [Part]| {
        let moe = parts
            .iter()
            .filter(|part| matches!(part.work, Work::Moe(_)));
        let first = layers;
        layers += moe.count();
        let moe: Vec<usize> = (first..layers).collect();
        Block {
            parts,
            groups: moe.iter().map(|&layer| groups.of(layer)).collect(),
            moe,
        }
    };
    runs.map(block).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::{Load, Plan, Routing};
    use crate::cost::analytic::Analytic;
    use crate::hardware::builtin;
    use crate::model::{MemorySaving, PRESETS, preset};
    use crate::spec::{AllToAll, Encode, Layout, Padding, ResolvedLayer};
    use moeplan_traces::{RoutingSpec, Shape};

    const PLANS: [Plan; 4] = [
        Plan::PLAIN,
        Plan {
            all_to_all: AllToAll::TwoDh,
            forward_degree: 4,
            ..Plan::PLAIN
        },
        Plan {
            encode: Encode::Dense,
            layout: Layout::Conventional,
            ..Plan::PLAIN
        },
        Plan {
            padding: Padding::Dropless,
            forward_degree: 2,
            ..Plan::PLAIN
        },
    ];

    /// A skewed step, another one for every recorded layer.
    fn load(layer: &ResolvedLayer, recorded: usize, plan: Plan) -> Load {
        let spec: RoutingSpec = "zipf:1.1".parse().unwrap();
        let shape = Shape {
            ranks: layer.world_size as usize,
            experts: layer.num_experts as usize,
            tokens_per_rank: layer.tokens() as u32,
            top_k: layer.spec.top_k,
        };
        let step = spec.generate(&shape, 3, 0, recorded as u32).unwrap();
        let routing = Routing::of(Some(&step));
        Load::new(layer, layer.spec.capacity_factor, plan.padding, &routing)
    }

    #[test]
    fn an_outline_says_what_the_whole_model_does() {
        let hardware = builtin("nd-a100-v4-80gb").unwrap();
        let prices = Analytic::new(&hardware).unwrap();
        let mut outlined = 0;
        for (&name, recorded) in PRESETS.iter().zip([1, 3, 2, 1, 3, 3, 2]) {
            for tensor_parallel in [1, 2] {
                let model = preset(name, 256).unwrap().unwrap();
                if !model.head_groups.is_multiple_of(tensor_parallel) {
                    continue;
                }
                let run = ModelRun {
                    model: &model,
                    hardware: &hardware,
                    prices: &prices,
                    gpus: 16,
                    gpus_per_node: 8,
                    batch: 1,
                    phase: Phase::Forward,
                    saving: MemorySaving::default(),
                    tensor_parallel,
                };
                let groups = MoeGroups::new(&model, recorded);
                assert!(Outline::new(&model, &groups, Phase::Training).is_none());
                let Some(outline) = Outline::new(&model, &groups, Phase::Forward) else {
                    continue;
                };
                outlined += 1;
                let layers = run.layers(&groups).unwrap();
                for plan in PLANS {
                    let recorded = groups.iter().map(|group| group.recorded);
                    let loads: Vec<Load> = (layers.iter().zip(recorded))
                        .map(|(layer, recorded)| load(layer, recorded, plan))
                        .collect();
                    let moe = groups.runs(&layers, &loads, &vec![plan; layers.len()]);
                    let whole = run.program(&model, &moe).unwrap();
                    let expected = (Floor::of(&whole, &prices), whole.largest_peak_memory());
                    let found = outline.floor(&run, &moe, &prices).unwrap();
                    assert_eq!(found, expected, "{name}, {plan}");
                }
            }
        }
        assert!(outlined >= 8, "{outlined}");
    }
}
