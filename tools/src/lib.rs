//! Command line of moeplan.
//!
//! [`run`] is the whole program without the process around it, so that tests call it in place:
//! arguments and streams in, exit code out.

pub mod calibrate;
pub mod cli;
pub mod command;
pub mod dash;
pub mod document;
pub mod economy;
pub mod error;
pub mod machine;
pub mod output;
pub mod play;
pub mod presets;
pub mod report;
pub mod resolve;
pub mod routing;
pub mod run_file;
pub mod session;
pub mod settings;
pub mod study;
pub mod summary;
pub mod sweep;
pub mod trace_file;
pub mod validate;

use clap::Parser;
use cli::{Cli, Command, Common, DashArgs, ScenarioArgs, Validated};
use command::compare::Job;
use command::dash::Origin;
use error::{Error, Exit};
use output::Answer;
use resolve::{Given, Resolved, resolve};
use session::{Session, Streams};
use settings::{ModelSettings, Study};
use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

/// The program on the streams, arguments and signals of this process.
pub fn main_on_this_machine() -> ExitCode {
    // A panic is reported by `run`, as one line.
    std::panic::set_hook(Box::new(|_| {}));
    heed_ctrl_c();
    let watched = io::stderr().is_terminal();
    let (mut stdout, mut stderr) = (io::stdout(), io::stderr());
    let streams = Streams {
        stdout: &mut stdout,
        stderr: &mut stderr,
        watched,
    };
    run(std::env::args_os(), streams).into()
}

/// From here on Ctrl-C ends this process after the step at hand, and a second one at once.
pub fn heed_ctrl_c() {
    // Without the handler Ctrl-C ends the program at once, which is no reason not to run.
    let _ = ctrlc::set_handler(|| {
        if session::interrupt() {
            dash::terminal::restore();
            #[expect(clippy::exit, reason = "the user asked a second time")]
            std::process::exit(i32::from(Exit::Interrupted.code()));
        }
    });
}

/// Runs the command line `args` (the program's name first).
pub fn run<I, T>(args: I, streams: Streams<'_>) -> Exit
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => return usage(&error, streams),
    };
    let Streams {
        stdout,
        stderr,
        watched,
    } = streams;
    let outcome = {
        let streams = Streams {
            stdout,
            stderr: &mut *stderr,
            watched,
        };
        catch_unwind(AssertUnwindSafe(|| dispatch(cli, streams)))
    };
    let error = match outcome {
        Ok(Ok(exit)) => return exit,
        Ok(Err(error)) => error,
        Err(panic) => {
            let said = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no message");
            Error::Unexpected(format!(
                "this is a mistake in moeplan, please report it: {said}"
            ))
        }
    };
    // Nobody is left to tell when standard error is gone.
    let _ = writeln!(stderr, "error: {error}");
    error.exit()
}

/// Help and version go to standard output; a wrong flag is bad input.
fn usage(error: &clap::Error, streams: Streams<'_>) -> Exit {
    let text = error.render().to_string();
    if error.use_stderr() {
        let _ = streams.stderr.write_all(text.as_bytes());
        Exit::BadInput
    } else {
        let _ = streams.stdout.write_all(text.as_bytes());
        Exit::Done
    }
}

fn dispatch(cli: Cli, streams: Streams<'_>) -> Result<Exit, Error> {
    let Cli { common, command } = cli;
    let mut given = Given::read(common.config.as_deref())?;
    given.flags.seed = common.seed;
    let output = over(&common, &given.file);
    if let Some(path) = &output.file {
        output::check_writable(path)?;
    }
    given.flags.output = output.clone();
    let mut session = Session::new(streams, output)?;
    let (answer, exit) = match command {
        None => job(Job::Main, given, &mut session)?,
        Some(Command::Simulate(args)) => {
            take(
                &mut given,
                args.scenario,
                args.strategy.into_iter().collect(),
            );
            given.flags.economy = args.economy;
            given.flags.report = args.report;
            given.flags.export = args.export;
            if given.export().export.is_some() {
                let resolved = resolve(&given, &Job::Simulate.strategies())?;
                one_strategy(&given, &resolved)?;
                command::breakdown::run(&given, &resolved, &mut session)?
            } else {
                job(Job::Simulate, given, &mut session)?
            }
        }
        Some(Command::Compare(args)) => {
            take(&mut given, args.scenario, args.strategy);
            given.flags.economy = args.economy;
            given.flags.report = args.report;
            given.flags.ladder = args.ladder;
            job(Job::Compare, given, &mut session)?
        }
        Some(Command::Validate(args)) => {
            given.flags.cluster.preset = args.cluster;
            given.flags.execute = args.execute;
            given.flags.validate = args.settings;
            match args.what {
                Some(Validated::Executor) => command::validate_executor::run(&given, &mut session)?,
                None => command::validate::run(&given, &mut session)?,
            }
        }
        Some(Command::Breakdown(args)) => {
            take(
                &mut given,
                args.scenario,
                args.strategy.into_iter().collect(),
            );
            given.flags.breakdown = args.breakdown;
            given.flags.export = args.export;
            let resolved = resolve(&given, &Job::Simulate.strategies())?;
            one_strategy(&given, &resolved)?;
            show(&resolved, &mut session)?;
            command::breakdown::run(&given, &resolved, &mut session)?
        }
        Some(Command::Collective(args)) => {
            given.flags.cluster = args.cluster;
            given.flags.collective = args.settings;
            command::collective::run(args.collective, &given, &mut session)?
        }
        Some(Command::Calibrate(args)) => {
            given.flags.calibrate = args.settings;
            command::calibrate::run(&given, &mut session)?
        }
        Some(Command::Execute(args)) => {
            take(
                &mut given,
                args.scenario,
                args.strategy.into_iter().collect(),
            );
            given.flags.report = args.report;
            given.flags.execute = args.execute;
            given.flags.gate = args.gate;
            given.flags.export = args.export;
            command::execute::defaults(&mut given);
            let resolved = resolve(&given, &command::execute::strategies())?;
            one_strategy(&given, &resolved)?;
            show(&resolved, &mut session)?;
            command::execute::run(&given, resolved, &mut session)?
        }
        Some(Command::Model(args)) => {
            given.strategies = args.strategy;
            given.flags.phase = args.phase;
            given.flags.cluster = args.cluster;
            given.flags.model = args.model;
            given.flags.routing = args.routing;
            given.refine = args.refine;
            command::model::run(given, &mut session)?
        }
        Some(Command::Balance(args)) => {
            take(&mut given, args.scenario, Vec::new());
            given.flags.balance = args.balance;
            command::balance::defaults(&mut given);
            let resolved = resolve(&given, &command::balance::strategies())?;
            show(&resolved, &mut session)?;
            command::balance::run(&given, &resolved, &mut session)?
        }
        Some(Command::Goodput(args)) => {
            let strategies = args.strategy.into_iter().collect();
            take(&mut given, args.scenario, strategies);
            given.flags.world = args.world;
            let resolved = resolve(&given, &Job::Simulate.strategies())?;
            one_strategy(&given, &resolved)?;
            show(&resolved, &mut session)?;
            command::goodput::run(&given, &resolved, &mut session)?
        }
        Some(Command::Dash(args)) => return watch(args, given, &mut session),
        Some(Command::Kernel(args)) => {
            given.flags.cluster.preset = args.cluster;
            given.flags.kernel = args.settings;
            command::kernel::run(args.kernel, &given)?
        }
        Some(Command::Report(args)) => {
            take(&mut given, args.scenario, args.strategy);
            command::report::run(args.what, args.assets.as_ref(), given, &mut session)?
        }
        Some(Command::Plan(args)) => {
            given.strategies = args.strategy;
            given.flags.phase = args.phase;
            given.flags.prices = args.prices;
            given.flags.layer = args.layer;
            given.flags.routing = args.routing;
            given.flags.economy = args.economy;
            given.flags.plan = args.plan;
            given.flags.model = ModelSettings {
                preset: args.model,
                batch: args.batch,
                sequence_length: args.sequence_length,
                shard_states: args.shard_states,
                shard_gradients: args.shard_gradients,
                recompute: args.recompute,
                micro_batches: args.micro_batches,
                tensor_parallel: args.tensor_parallel,
                ..ModelSettings::default()
            };
            given.refine = args.refine;
            command::plan::run(&given, &mut session)?
        }
        Some(Command::Sweep(args)) => return command::sweep::run(&args, &given, &mut session),
        Some(Command::Merge(args)) => return command::sweep::merge(&args, &mut session),
        Some(Command::Trace(command)) => command::trace::run(command, given, &mut session)?,
    };
    finish((answer, exit), &mut session)
}

/// `dash`: a file, or what the flags say.
fn watch(args: DashArgs, mut given: Given, session: &mut Session<'_>) -> Result<Exit, Error> {
    let settings = args.dash.over(&given.file.dash);
    take(&mut given, args.scenario, args.strategy);
    let Some(file) = args.file else {
        given.flags.ladder = args.ladder;
        given.flags.report.record = args.record;
        Job::Main.defaults(&mut given.file);
        let resolved = resolve(&given, &Job::Compare.strategies())?;
        let origin = Origin::Simulation(Box::new(resolved));
        return command::dash::run(origin, &settings, session);
    };
    let flags = &given.flags;
    let simulates = args.ladder
        || args.record.is_some()
        || !given.strategies.is_empty()
        || flags.cluster != settings::ClusterSettings::default()
        || flags.layer != settings::LayerSettings::default()
        || flags.routing != settings::RoutingSettings::default()
        || given.refine != settings::StrategySettings::default();
    if simulates {
        let message = "expected either a file or settings to simulate, found both";
        return Err(Error::input(error::Place::default(), message));
    }
    command::dash::run(Origin::File(file), &settings, session)
}

/// Writes what a command found.
fn finish((answer, exit): (Answer, Exit), session: &mut Session<'_>) -> Result<Exit, Error> {
    output::write(&answer, session)?;
    Ok(exit)
}

/// Output settings: flags over the study file.
fn over(common: &Common, file: &Study) -> settings::OutputSettings {
    let (flags, file) = (&common.output, &file.output);
    settings::OutputSettings {
        format: flags.format.or(file.format),
        file: flags.file.clone().or_else(|| file.file.clone()),
        threads: flags.threads.or(file.threads),
        quiet: flags.quiet || file.quiet,
        verbose: flags.verbose || file.verbose,
    }
}

fn take(given: &mut Given, scenario: ScenarioArgs, strategies: Vec<String>) {
    given.strategies = strategies;
    given.flags.phase = scenario.phase;
    given.flags.cluster = scenario.cluster;
    given.flags.prices = scenario.prices;
    given.flags.layer = scenario.layer;
    given.flags.routing = scenario.routing;
    given.refine = scenario.refine;
}

fn job(job: Job, mut given: Given, session: &mut Session<'_>) -> Result<(Answer, Exit), Error> {
    job.defaults(&mut given.file);
    let resolved = resolve(&given, &job.strategies())?;
    if job == Job::Simulate {
        one_strategy(&given, &resolved)?;
    }
    show(&resolved, session)?;
    command::compare::run(job, &resolved, session)
}

/// Fails where a study file lists several strategies for a command that runs one.
fn one_strategy(given: &Given, resolved: &Resolved) -> Result<(), Error> {
    match resolved.strategies.len() {
        1 => Ok(()),
        several => {
            let message = format!(
                "expected one strategy, found {several}: choose one with --strategy, or use \
                 `moeplan compare`"
            );
            Err(Error::input(
                given.place(&["strategy[1]"], None, "name"),
                message,
            ))
        }
    }
}

/// Prints the settings in force, where asked for.
fn show(resolved: &Resolved, session: &mut Session<'_>) -> Result<(), Error> {
    if session.output.verbose {
        // TOML has no numbers from 2^63 on; such a seed is shown as JSON.
        let text = toml::to_string(&resolved.study)
            .or_else(|_| serde_json::to_string_pretty(&resolved.study))
            .map_err(|error| Error::Unexpected(format!("settings: {error}")))?;
        session.note(&text);
    }
    Ok(())
}
