//! `dash`: the dashboard over a file, or over a run of its own.

use crate::dash::keymap;
use crate::dash::state::{Effect, Msg, State, View};
use crate::dash::terminal::{self, Borrowed, World};
use crate::dash::theme::{Depth, Theme};
use crate::dash::update::update;
use crate::dash::{self, Laboratory, Points};
use crate::error::{Error, Exit, Place};
use crate::output::{self, raster};
use crate::resolve::Resolved;
use crate::run_file::{Header, Writer};
use crate::session::{self, Session};
use crate::settings::DashSettings;
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{KeyCode, KeyEvent};
use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The size of a picture when nothing is said.
const PICTURE: (u16, u16) = (120, 40);
/// How long a run that is recorded may take to end its step.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where the run comes from.
pub enum Origin {
    /// A run file, or a sweep.
    File(PathBuf),
    /// It is simulated here.
    Simulation(Box<Resolved>),
}

/// Shows `origin`.
///
/// # Errors
/// A file that cannot be read, settings that cannot be run, no terminal.
pub fn run(
    origin: Origin,
    settings: &DashSettings,
    session: &mut Session<'_>,
) -> Result<Exit, Error> {
    let speed = settings.speed.unwrap_or(4.0);
    if !(0.25..=1024.0).contains(&speed) {
        let message = format!("expected 0.25 to 1024 steps a second, found {speed}");
        return Err(Error::input(Place::flag("--speed"), message));
    }
    let is_picture = settings.screenshot.is_some();
    let has_terminal = io::stdout().is_terminal() && io::stdin().is_terminal();
    if !is_picture && !has_terminal {
        return Err(Error::Missing(
            "dash needs a terminal on standard input and output; --screenshot VIEW draws without one"
                .into(),
        ));
    }
    let theme = match is_picture {
        true => Theme {
            depth: Depth::True,
            ground: settings.theme.unwrap_or_default(),
        },
        false => Theme::of_terminal(settings.theme, |name| std::env::var(name).ok()),
    };
    let (source, inbox, out) = {
        let (out, inbox) = channel();
        let source = match &origin {
            Origin::File(path) => path.display().to_string(),
            Origin::Simulation(_) => "simulated here".to_owned(),
        };
        (source, inbox, out)
    };
    let mut worker: Option<JoinHandle<()>> = None;
    let mut recorded = false;
    match origin {
        Origin::File(path) => match kind_of(&path, settings.follow)? {
            Kind::Run => dash::worker::file(path, settings.follow, out.clone()),
            Kind::Sweep => dash::worker::sweep(path, settings.follow, out.clone()),
        },
        Origin::Simulation(resolved) => {
            let record = resolved.study.report.record.clone();
            let writer = record.map(|path| Writer::create(&path)).transpose()?;
            recorded = writer.is_some();
            worker = Some(dash::worker::simulation(*resolved, writer, out.clone()));
        }
    }
    let mut state = State::new(source, theme, PICTURE);
    state.has_laboratory = true;
    state.speed = speed;
    if let Some(view) = settings.view {
        state.view = view;
    }
    if let Some(view) = settings.screenshot {
        drop(out);
        return picture(state, view, settings, &inbox, session);
    }
    let shown = show(&mut state, settings, inbox, out);
    if recorded && let Some(worker) = worker {
        // The file ends with a whole step, and says that it was interrupted.
        session::interrupt();
        let clock = Instant::now();
        while !worker.is_finished() && clock.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    shown
}

enum Kind {
    Run,
    Sweep,
}

/// What is in the file at `path`; one that is not there yet will be a run.
fn kind_of(path: &Path, follow: bool) -> Result<Kind, Error> {
    let mut start = Vec::new();
    match File::open(path) {
        Ok(file) => {
            file.take(32)
                .read_to_end(&mut start)
                .map_err(|source| Error::Read {
                    path: path.display().to_string(),
                    source,
                })?;
        }
        Err(source) if follow && source.kind() == io::ErrorKind::NotFound => {}
        Err(source) => {
            return Err(Error::Read {
                path: path.display().to_string(),
                source,
            });
        }
    }
    Ok(match Points::is_sweep(&start) {
        true => Kind::Sweep,
        false => Kind::Run,
    })
}

/// Runs the dashboard on the terminal of this process.
fn show(
    state: &mut State,
    settings: &DashSettings,
    mut inbox: Receiver<Msg>,
    out: std::sync::mpsc::Sender<Msg>,
) -> Result<Exit, Error> {
    let failed = |source| Error::Write {
        path: "the terminal".into(),
        source,
    };
    // A file that cannot be read is told as other commands tell it, before the screen changes.
    let first = inbox.recv_timeout(Duration::from_millis(300)).ok();
    if let Some(Msg::Failed(why)) = &first {
        return Err(Error::input(Place::default(), why.clone()));
    }
    if let Some(first) = first {
        update(state, first);
    }
    if settings.speed.is_some() {
        state.at_end = false;
        state.cursor = 0;
        state.playing = true;
    }
    dash::worker::keys(out.clone());
    let simulator = dash::worker::Simulator::start(out);
    let borrowed = Borrowed::take().map_err(failed)?;
    let mut terminal = Terminal::new(CrosstermBackend::new(io::stdout())).map_err(failed)?;
    let size = terminal.size().map_err(failed)?;
    state.size = (size.width, size.height);
    let mut here = Here { simulator };
    let ran = terminal::run(&mut terminal, state, &mut inbox, &mut here).map_err(failed);
    drop(borrowed);
    ran?;
    Ok(match session::interrupted() {
        true => Exit::Interrupted,
        false => Exit::Done,
    })
}

/// This process, as the loop sees it.
struct Here {
    simulator: dash::worker::Simulator,
}

impl World for Here {
    fn should_end(&self) -> bool {
        session::interrupted()
    }

    fn start(&mut self, effect: Effect, state: &State) {
        if let Some(header) = &state.run.header {
            self.simulator.ask(effect, plan_of(state), header);
        }
    }

    fn save(&mut self, screen: &Buffer, state: &State) -> Msg {
        let stem = format!("moeplan-{}", state.view.name().to_lowercase());
        let free = (0..10_000)
            .map(|number| match number {
                0 => stem.clone(),
                _ => format!("{stem}-{number}"),
            })
            .find(|stem| !Path::new(&format!("{stem}.svg")).exists());
        let Some(stem) = free else {
            return Msg::Saved(Err("too many screens here already".into()));
        };
        let paths = [format!("{stem}.svg"), format!("{stem}.txt")].map(PathBuf::from);
        let svg = dash::svg(screen, state.theme.ground);
        let saved = output::replace(&paths[0], svg.as_bytes())
            .and_then(|()| output::replace(&paths[1], dash::text(screen).as_bytes()));
        Msg::Saved(match saved {
            Ok(()) => Ok(paths.to_vec()),
            Err(error) => Err(error.to_string()),
        })
    }
}

/// The plan of the step that is shown.
fn plan_of(state: &State) -> std::sync::Arc<str> {
    state
        .run_now()
        .map_or_else(|| "".into(), |run| run.plan.clone())
}

/// Draws one view without a terminal.
fn picture(
    mut state: State,
    view: View,
    settings: &DashSettings,
    inbox: &Receiver<Msg>,
    session: &mut Session<'_>,
) -> Result<Exit, Error> {
    if let Some(size) = settings.size {
        state.size = (size.columns, size.rows);
    }
    let mut laboratory: Option<(Header, Laboratory)> = None;
    let mut tell = |state: &mut State, msg: Msg| {
        let mut next = Some(msg);
        while let Some(msg) = next.take() {
            if let (Some(effect), Some(header)) = (update(state, msg), state.run.header.clone()) {
                let plan = plan_of(state);
                next = Some(dash::worker::answer(
                    &mut laboratory,
                    &effect,
                    &plan,
                    &header,
                ));
            }
        }
    };
    state.view = View::Overview;
    // All of the run: whoever sends it hangs up at its end.
    while let Ok(msg) = inbox.recv() {
        if let Msg::Failed(why) = msg {
            return Err(Error::input(Place::default(), why));
        }
        tell(&mut state, msg);
    }
    if let Some(step) = settings.step {
        let steps = state.run.steps.len() as u64;
        if step >= steps.max(1) {
            let message = format!("expected 0 to {}, found {step}", steps.saturating_sub(1));
            return Err(Error::input(Place::flag("--at-step"), message));
        }
        state.cursor = step as usize;
    }
    let key = |code: char| Msg::Key(KeyEvent::from(KeyCode::Char(code)));
    let number = u32::try_from(view.index() + 1).unwrap_or(1);
    tell(&mut state, key(char::from_digit(number, 10).unwrap_or('1')));
    for code in settings.keys.iter().flat_map(|keys| keys.chars()) {
        if keymap::action(KeyEvent::from(KeyCode::Char(code))).is_none() {
            let message = format!("expected keys of the dashboard, found `{code}`");
            return Err(Error::input(Place::flag("--keys"), message));
        }
        tell(&mut state, key(code));
    }
    let screen = dash::screen(&state);
    let path = session.output.file.clone().unwrap_or_default();
    let svg = || dash::svg(&screen, state.theme.ground);
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("svg") => output::write_text(&svg(), session)?,
        Some("png") => output::replace(&path, &raster::png(&svg())?)?,
        _ => output::write_text(&dash::text(&screen), session)?,
    }
    Ok(Exit::Done)
}
