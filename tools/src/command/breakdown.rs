//! `breakdown`: where the time of one step goes.

use crate::error::{Error, Exit};
use crate::output::{Answer, breakdown, comparison, perfetto};
use crate::play::{play, refused, scenario};
use crate::resolve::{Given, Resolved};
use crate::session::Session;
use moeplan_sim::compile::Routing;
use moeplan_sim::cost::{CostModel, Exchange};
use moeplan_sim::ir::{Op, OpKind, Program, Stage, Timeline, critical_path, waiting_for_others};
use moeplan_sim::policy::Runner;
use moeplan_sim::simulate::Trace;
use moeplan_sim::units::Time;
use serde::Serialize;
use serde_json::json;

/// One operation of the critical path.
#[derive(Debug, Clone, Serialize)]
pub struct PathRow {
    /// The rank whose operation it is.
    pub rank: usize,
    /// Index in the program.
    pub op: u32,
    /// What it does.
    pub what: &'static str,
    /// The part of the layer.
    pub stage: &'static str,
    /// `forward` or `backward`.
    pub pass: &'static str,
    /// Chunk of the pipelining degree.
    pub chunk: u16,
    /// When it began.
    pub start_ns: u64,
    /// Time before it in which nothing on the path ran.
    pub waited_ns: u64,
    /// Its time.
    pub ran_ns: u64,
    /// How that was obtained.
    pub provenance: String,
}

/// A stage's part of the critical path.
#[derive(Debug, Clone, Serialize)]
pub struct StageShare {
    /// The stage, or `host`: nothing ran, as nothing was issued.
    pub stage: &'static str,
    /// Its time on the path.
    pub time_ns: u64,
    /// Its share of the step.
    pub share: f64,
}

/// The rank that is done last.
#[derive(Debug, Clone, Serialize)]
pub struct Straggler {
    /// Which.
    pub rank: usize,
    /// Whether there is one: where all ranks are alike, none is slower.
    pub all_alike: bool,
    /// Rows its experts multiply.
    pub expert_rows: u64,
    /// The mean of all ranks.
    pub mean_expert_rows: f64,
    /// Mean time ranks wait for others at collectives.
    pub mean_waiting_ns: u64,
    /// The longest.
    pub longest_waiting_ns: u64,
    /// The rank that waits longest.
    pub longest_waiting_rank: usize,
}

/// The exchange that takes longest.
#[derive(Debug, Clone, Serialize)]
pub struct BiggestExchange {
    /// Index in the program.
    pub op: u32,
    /// The part of the layer.
    pub stage: &'static str,
    /// `forward` or `backward`.
    pub pass: &'static str,
    /// Ranks that exchange with each other.
    pub group: usize,
    /// Bytes of the rank that sends most.
    pub bytes_sent: u64,
    /// Its time.
    pub time_ns: u64,
    /// The busiest port at its full rate.
    pub port_bound_ns: u64,
    /// What limits it.
    pub bottleneck: String,
}

/// Where the time of one step goes.
#[derive(Debug, Clone, Serialize)]
pub struct Breakdown {
    /// Number of the step in its recording.
    pub step: u64,
    /// Its plan.
    pub plan: String,
    /// Its time.
    pub step_time_ns: u64,
    /// Stages on the critical path; they add up to the step.
    pub stages: Vec<StageShare>,
    /// Who comes last.
    pub straggler: Straggler,
    /// What limits the longest exchange, where there is one.
    pub exchange: Option<BiggestExchange>,
    /// The path, first operation first.
    pub critical_path: Vec<PathRow>,
}

/// Breaks down one step of the first strategy.
///
/// # Errors
/// Settings that cannot be run, or a step that is not there.
pub fn run(
    given: &Given,
    resolved: &Resolved,
    session: &mut Session<'_>,
) -> Result<(Answer, Exit), Error> {
    let asked = given.flags.breakdown.step.or(given.file.breakdown.step);
    let steps = resolved.routing.len();
    if let Some(step) = asked.filter(|step| *step >= steps) {
        let message = format!(
            "expected 0 to {} of the {steps} steps, found {step}",
            steps - 1
        );
        return Err(Error::input(
            given.place(&["breakdown"], None, "step"),
            message,
        ));
    }
    let model = resolved.model()?;
    // Policies learn, so all steps are played even where one is asked for.
    let plays = play(resolved, &*model, session, &mut ())?;
    let run = plays
        .runs
        .first()
        .ok_or_else(|| Error::Unexpected("no strategy was played".into()))?;
    let slowest = (0..run.steps.len())
        .rev()
        .max_by_key(|&step| run.steps[step].decided.step.time)
        .unwrap_or(0);
    let index = asked.unwrap_or(slowest);
    let Some(played) = run.steps.get(index) else {
        let message = format!("interrupted after {} of {steps} steps", run.steps.len());
        return Err(Error::Unexpected(message));
    };
    let routing = session.on_threads(|| resolved.routing.step(index))??;
    let routing = Routing::of(routing.as_deref());
    let mut runner = Runner::new(
        scenario(resolved, &*model),
        run.planned.strategy.clone(),
        false,
    )
    .map_err(|error| refused(&error))?;
    runner.reroute(resolved.layer(index));
    let trace = runner
        .trace(&routing, played.decided.step.plan)
        .map_err(|error| refused(&error))?;
    let exit = if plays.interrupted {
        Exit::Interrupted
    } else {
        Exit::Done
    };
    if given.export().export.is_some() {
        let what = perfetto::About {
            strategy: &run.planned.strategy.name,
            step: played.label,
            plan: trace.step.plan,
        };
        let priced = Some(trace.priced.as_slice());
        let trace = perfetto::export(
            given,
            resolved,
            &what,
            &trace.program,
            &trace.timeline,
            priced,
        )?;
        return Ok((Answer::document(trace), exit));
    }
    let found = break_down(played.label, &trace, &*model);
    let mut text = comparison::heading(resolved);
    text.push('\n');
    text += &breakdown::text(&run.planned.strategy.name, &found);
    let mut settings = super::compare::settings(resolved)?;
    settings["breakdown"] = json!({"step": index});
    let json = super::compare::to_json(&found)?;
    let body = match json {
        serde_json::Value::Object(map) => map,
        other => [("breakdown".to_owned(), other)].into_iter().collect(),
    };
    let answer = Answer {
        command: "breakdown",
        settings,
        seed: resolved.seed,
        body,
        rows: "critical_path",
        text,
    };
    Ok((answer, exit))
}

fn pass(op: &Op) -> &'static str {
    match op.pass {
        moeplan_sim::ir::Pass::Forward => "forward",
        moeplan_sim::ir::Pass::Backward => "backward",
    }
}

fn break_down(step: u64, trace: &Trace, model: &dyn CostModel) -> Breakdown {
    let Trace {
        step: summary,
        program,
        priced,
        timeline,
    } = trace;
    let path = critical_path(program, timeline);
    let rows: Vec<PathRow> = path
        .iter()
        .map(|on_path| {
            let op = &program.ops[on_path.op.index()];
            PathRow {
                rank: on_path.rank,
                op: on_path.op.0,
                what: op.kind.label(),
                stage: op.stage.name(),
                pass: pass(op),
                chunk: op.chunk,
                start_ns: timeline.span(on_path.rank, on_path.op).start.as_ns(),
                waited_ns: on_path.waited.as_ns(),
                ran_ns: on_path.ran.as_ns(),
                provenance: priced[on_path.op.index()].provenance.to_string(),
            }
        })
        .collect();
    let total = summary.time.as_secs_f64().max(1e-12);
    let share = |stage: &'static str, time: Time| StageShare {
        stage,
        time_ns: time.as_ns(),
        share: time.as_secs_f64() / total,
    };
    let mut stages: Vec<StageShare> = Stage::ALL
        .into_iter()
        .map(|stage| {
            let of_stage = path
                .iter()
                .filter(|on_path| program.ops[on_path.op.index()].stage == stage);
            share(stage.name(), of_stage.map(|on_path| on_path.ran).sum())
        })
        .filter(|share| share.time_ns > 0)
        .collect();
    let waited: Time = path.iter().map(|on_path| on_path.waited).sum();
    if waited > Time::ZERO {
        stages.push(share("host", waited));
    }
    Breakdown {
        step,
        plan: summary.plan.to_string(),
        step_time_ns: summary.time.as_ns(),
        stages,
        straggler: straggler(program, timeline),
        exchange: biggest_exchange(program, timeline, model),
        critical_path: rows,
    }
}

fn straggler(program: &Program, timeline: &Timeline) -> Straggler {
    let world = program.world_size;
    let all: u64 = (0..world).map(|rank| program.expert_rows(rank)).sum();
    let waits = waiting_for_others(program, timeline);
    let total: Time = waits.iter().copied().sum();
    // Whoever waits least at collectives is the one the others wait for.
    let rank = (0..waits.len())
        .min_by_key(|&rank| waits[rank])
        .unwrap_or(0);
    let longest = (0..waits.len())
        .rev()
        .max_by_key(|&rank| waits[rank])
        .unwrap_or(0);
    Straggler {
        rank,
        all_alike: timeline.rows() == 1,
        expert_rows: program.expert_rows(rank),
        mean_expert_rows: all as f64 / world as f64,
        mean_waiting_ns: total.as_ns() / waits.len().max(1) as u64,
        longest_waiting_ns: waits.get(longest).copied().unwrap_or(Time::ZERO).as_ns(),
        longest_waiting_rank: longest,
    }
}

/// The exchange that takes longest on the slowest rank, and what limits it.
pub fn biggest_exchange(
    program: &Program,
    timeline: &Timeline,
    model: &dyn CostModel,
) -> Option<BiggestExchange> {
    let rank = timeline.slowest_rank();
    let (id, op) = program
        .iter()
        .filter(|(_, op)| matches!(op.kind, OpKind::Exchange { .. }))
        .max_by_key(|(id, _)| {
            let span = timeline.span(rank, *id);
            // Of equals the first.
            (span.end - span.start, std::cmp::Reverse(*id))
        })?;
    let exchange = Exchange::of(program, op)?;
    let price = model.exchange(&exchange);
    let traffic = exchange.traffic;
    let ranks = match traffic {
        moeplan_sim::ir::Traffic::Uniform { .. } => 1,
        moeplan_sim::ir::Traffic::Matrix { .. } => program.world_size,
    };
    let sent = (0..ranks).map(|rank| traffic.sent_by(rank, program.world_size));
    let span = timeline.span(rank, id);
    Some(BiggestExchange {
        op: id.0,
        stage: op.stage.name(),
        pass: pass(op),
        group: traffic.scope().group_size(program.world_size),
        bytes_sent: sent.max().unwrap_or(0),
        time_ns: (span.end - span.start).as_ns(),
        port_bound_ns: price.port_bound.as_ns(),
        bottleneck: price.bottleneck,
    })
}
