//! The dashboard without a terminal: every view at three sizes, and no input that harms it.
//!
//! `fixtures/small.moeplan` is a simulated run, recorded once, so that views are tested apart from the
//! cost models: `moeplan compare --gpus 16 --gpus-per-node 4 --tokens-per-step 2048 --model-dim 1024
//! --hidden-dim 1024 --padding dropless --trace digits --steps 6 --record small.moeplan`.

use crate::run_file::small;
use moeplan::dash::state::{Effect, Msg, State, Status, View};
use moeplan::dash::terminal::{Inbox, Next, World, run};
use moeplan::dash::theme::{Depth, Ground, Theme};
use moeplan::dash::update::update;
use moeplan::dash::view::view;
use moeplan::dash::whatif::{Answer, Brief, Change};
use moeplan::dash::{Laboratory, Points, screen, text};
use moeplan::error::Exit;
use moeplan::run_file::{Block, Header};
use moeplan_tests::moeplan;
use proptest::prelude::*;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{
    KeyCode, KeyEvent, KeyModifiers, MouseButton, MouseEvent, MouseEventKind,
};
use ratatui::style::Color;
use std::time::Duration;

const THEME: Theme = Theme {
    depth: Depth::True,
    ground: Ground::Dark,
};

fn key(code: char) -> Msg {
    Msg::Key(KeyEvent::from(KeyCode::Char(code)))
}

fn loaded(size: (u16, u16)) -> State {
    let mut state = State::new("small.moeplan".into(), THEME, size);
    update(&mut state, Msg::Blocks(small()));
    assert_eq!(state.status, Status::Complete);
    state
}

fn shown(state: &State) -> String {
    text(&screen(state))
}

const SWEEP: &str = "scenario,cluster.gpus,strategy,status,reason,step_time_ns,cost_per_billion_tokens\n\
     0,16,tutel,done,,9000000,12.5\n1,32,tutel,done,,5000000,14\n2,64,tutel,done,,2900000,16.5\n\
     3,64,fairseq,done,,7100000,40\n4,128,tutel,does-not-fit,memory: 3.1 GiB a GPU more than it has,,\n";

fn answered() -> Answer {
    let before = Brief {
        gpus: 16,
        plan: "r=1 d=2 linear".into(),
        time: 5_000_000,
        stages: [80_000, 60_000, 2_000_000, 1_900_000, 2_000_000, 90_000, 0],
        exposed: 3_000_000,
        memory_bytes: 2 << 30,
        memory_available: 80 << 30,
        capacity_factor: 2.5,
        dropped: 0.0,
        tokens: 16 * 2_048,
    };
    let after = Brief {
        gpus: 32,
        time: 6_000_000,
        memory_bytes: 90 << 30,
        tokens: 32 * 2_048,
        dropped: 0.2,
        ..before.clone()
    };
    Answer {
        change: Change([1, 0, 0, 0, 0, 0]),
        step: 5,
        strategy: 1,
        before,
        after,
    }
}

#[test]
fn every_view_at_three_sizes() {
    for (columns, rows) in [(80, 24), (120, 40), (200, 50)] {
        let mut state = loaded((columns, rows));
        update(&mut state, Msg::Points(Points::parse(SWEEP, "x").unwrap()));
        state.can_simulate = true;
        state.whatif.change = answered().change;
        state.whatif.answer = Some(Ok(Box::new(answered())));
        for view in View::ALL {
            state.view = view;
            let name = format!("{}-{columns}x{rows}", view.name().to_lowercase());
            insta::assert_snapshot!(name, shown(&state));
        }
    }
}

#[test]
fn the_other_faces_of_the_views() {
    let mut state = loaded((100, 30));
    for (name, keys) in [
        ("experts-layers", "2m"),
        ("experts-by-load", "2mm"),
        ("network-rails", "4m"),
        ("compare-step", "6m"),
        ("help", "?"),
    ] {
        state.metric = Default::default();
        for code in keys.chars() {
            update(&mut state, key(code));
        }
        insta::assert_snapshot!(name, shown(&state));
        state.help = false;
    }
    state.view = View::Cluster;
    for name in ["cluster-pod", "cluster-node", "cluster-gpu"] {
        update(&mut state, Msg::Key(KeyEvent::from(KeyCode::Enter)));
        insta::assert_snapshot!(name, shown(&state));
    }
}

/// Without an All-to-All the wires carry weights and gradients.
#[test]
fn the_network_of_data_parallel_experts_is_not_idle() {
    let args = "dash --gpus 16 --steps 1 --adaptive-r 0 --screenshot network";
    let ran = moeplan(args);
    assert_eq!(ran.exit, Exit::Done, "{}", ran.stderr);
    let of = |class: &str| {
        let line = ran
            .stdout
            .lines()
            .find(|line| line.contains(class))
            .unwrap();
        line.split_once(class).unwrap().1.to_owned()
    };
    for class in ["nvlink-out", "nic-out", "nic-in"] {
        assert!(
            of(class).contains("iB") || of(class).contains("MB"),
            "{}",
            of(class)
        );
        assert!(of(class).contains('%'), "{}", of(class));
    }
}

#[test]
fn a_terminal_that_is_too_small_says_so() {
    assert!(shown(&loaded((30, 8))).contains("too small: 30x8"));
    assert!(shown(&loaded((79, 24))).contains("needs 80x24"));
}

#[test]
fn without_colours_nothing_is_coloured_and_nothing_is_lost() {
    let mut coloured = loaded((120, 40));
    let mut plain = coloured.clone();
    plain.theme.depth = Depth::Mono;
    let mut ansi = coloured.clone();
    ansi.theme.depth = Depth::Ansi;
    let is_plain = |buffer: &Buffer| {
        let colours = buffer.content.iter().flat_map(|cell| [cell.fg, cell.bg]);
        colours.into_iter().all(|colour| colour == Color::Reset)
    };
    for view in View::ALL {
        for state in [&mut coloured, &mut plain, &mut ansi] {
            state.view = view;
        }
        assert!(is_plain(&screen(&plain)), "{}", view.name());
        assert_eq!(shown(&plain), shown(&coloured));
        let rgb =
            |cell: &ratatui::buffer::Cell| matches!(cell.fg, Color::Rgb(..) | Color::Indexed(_));
        assert!(!screen(&ansi).content.iter().any(rgb), "{}", view.name());
    }
}

#[test]
fn memory_that_does_not_fit_is_marked_by_words_and_colour() {
    let mut state = loaded((120, 40));
    let last = state.run.steps.len() - 1;
    state.run.steps[last].runs[state.strategy].fits = false;
    let buffer = screen(&state);
    let lines = text(&buffer);
    let (row, line) = lines
        .lines()
        .enumerate()
        .find(|(_, line)| line.contains("DOES NOT FIT"))
        .expect("a warning");
    let column = line.chars().count() - 4;
    let bad = THEME.bad();
    let cell = buffer.cell((column as u16, row as u16)).unwrap();
    assert_eq!(Some(cell.fg), bad.fg, "{line}");
}

#[test]
fn keys_do_what_the_help_says() {
    let mut state = loaded((80, 24));
    let last = state.run.steps.len() - 1;
    assert_eq!(state.cursor, last);
    update(&mut state, key(','));
    assert_eq!((state.cursor, state.at_end), (last - 1, false));
    update(&mut state, key('g'));
    assert_eq!(state.cursor, 0);
    update(&mut state, key('G'));
    assert_eq!((state.cursor, state.at_end), (last, true));
    update(&mut state, key('['));
    assert_eq!(state.strategy, 0);
    for (code, view) in ('1'..='8').zip(View::ALL) {
        update(&mut state, key(code));
        assert_eq!(state.view, view);
    }
    update(&mut state, Msg::Key(KeyEvent::from(KeyCode::Tab)));
    assert_eq!(state.view, View::Overview);
    assert_eq!(update(&mut state, key('q')), Some(Effect::Quit));
    assert_eq!(update(&mut state, key('s')), Some(Effect::Save));
    let stop = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert_eq!(update(&mut state, Msg::Key(stop)), Some(Effect::Quit));
    // While a filter is typed, letters are letters.
    update(&mut state, key('/'));
    assert_eq!(update(&mut state, key('q')), None);
    assert_eq!((state.filtering, state.filter.as_str()), (true, "q"));
    assert_eq!(update(&mut state, Msg::Key(stop)), Some(Effect::Quit));
}

#[test]
fn play_goes_on_by_time_and_stops_at_the_end() {
    let mut state = loaded((80, 24));
    update(&mut state, key('g'));
    update(&mut state, key(' '));
    assert!(state.is_moving());
    update(&mut state, Msg::Tick(Duration::from_millis(250)));
    assert_eq!(state.cursor, 1);
    for _ in 0..20 {
        update(&mut state, Msg::Tick(Duration::from_millis(250)));
    }
    assert_eq!(state.cursor, state.run.steps.len() - 1);
    assert!(!state.is_moving());
}

#[test]
fn a_run_that_grows_is_followed_unless_the_user_looks_back() {
    let mut blocks = small().into_iter();
    let mut state = State::new("growing".into(), THEME, (80, 24));
    let mut known = 0;
    for block in blocks.by_ref().take(4) {
        update(&mut state, Msg::Blocks(vec![block]));
        known = state.run.steps.len();
        assert_eq!(state.cursor, known.saturating_sub(1));
    }
    assert!(known > 0 && state.status == Status::Running);
    update(&mut state, key('g'));
    update(&mut state, Msg::Blocks(blocks.collect()));
    assert_eq!(state.cursor, 0);
    assert!(state.run.steps.len() > known);
    // A new run in the same file.
    update(&mut state, Msg::Restart);
    assert!(state.run.header.is_none() && state.run.steps.is_empty());
}

#[test]
fn a_step_that_was_not_recorded_in_full_is_simulated_where_that_can_be() {
    let mut state = loaded((120, 40));
    state.run.details.clear();
    update(&mut state, key('5'));
    assert!(shown(&state).contains("no step of this strategy was recorded in full"));
    state.can_simulate = true;
    let effect = update(&mut state, key('5'));
    let Some(Effect::Detail {
        step,
        strategy,
        ranks,
    }) = effect
    else {
        panic!("{effect:?}");
    };
    assert_eq!((step, strategy, ranks), (5, 1, 0..0));
    // Asked once.
    assert_eq!(update(&mut state, key('m')), None);
    assert!(shown(&state).contains("simulating this step"));
    update(&mut state, Msg::Detail(5, 1, Err("no such trace".into())));
    assert!(shown(&state).contains("no such trace"));
    assert_eq!(update(&mut state, key('m')), None);
}

/// The header of the fixture.
fn header() -> Header {
    let header = small().into_iter().find_map(|block| match block {
        Block::Header(header) => Some(*header),
        Block::Steps(_) | Block::Detail(_) | Block::Layers(_) | Block::End(_) => None,
    });
    header.expect("every run has one")
}

#[test]
fn what_was_simulated_again_is_what_was_recorded() {
    // Of a run of this version: cost models may have changed since the fixture.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.moeplan");
    let ran = moeplan(&format!(
        "compare --gpus 8 --gpus-per-node 4 --tokens-per-step 4096 --model-dim 1024 --hidden-dim 256 \
         --padding dropless --trace digits --steps 3 --record {}",
        path.display()
    ));
    assert_eq!(ran.exit, Exit::Done, "{}", ran.stderr);
    let mut state = State::new("run".into(), THEME, (120, 40));
    let mut reader = moeplan::run_file::Reader::open(&path).unwrap();
    update(&mut state, Msg::Blocks(reader.blocks().unwrap()));
    let laboratory = Laboratory::new(state.run.header.as_ref().unwrap()).unwrap();
    for ((step, strategy), recorded) in &state.run.details {
        let (step, strategy) = (*step as usize, usize::from(*strategy));
        let plan = &state.run.steps[step].runs[strategy].plan;
        let again = laboratory.detail(step, strategy, plan, &(0..0)).unwrap();
        assert_eq!(again, **recorded, "step {step}, strategy {strategy}");
    }
    // A file that claims more steps than its settings give.
    assert!(laboratory.detail(99, 1, "r=1", &(0..0)).is_err());
    assert!(laboratory.what_if(99, 1, Change::default()).is_err());
    // Settings left as they are change nothing; twice the GPUs do.
    let same = laboratory.what_if(1, 1, Change::default()).unwrap();
    assert_eq!(same.before, same.after);
    let more = laboratory
        .what_if(1, 1, Change([1, 0, 0, 0, 0, 0]))
        .unwrap();
    assert_eq!((more.before, more.after.gpus), (same.before, 16));
    let faster = laboratory
        .what_if(1, 1, Change([0, 0, 0, 2, 0, 0]))
        .unwrap();
    assert!(faster.after.time < faster.before.time);
}

#[test]
fn measured_runs_are_not_simulated() {
    let header = Header {
        measured: true,
        ..header()
    };
    assert!(Laboratory::new(&header).is_err());
}

/// Messages of a script; then none.
struct Script(std::vec::IntoIter<Msg>);

impl Inbox for Script {
    fn next(&mut self, _: Duration) -> Next {
        self.0
            .next()
            .map_or(Next::Over, |msg| Next::Msg(Box::new(msg)))
    }
}

/// A world in which nothing happens.
#[derive(Default)]
struct Still {
    saved: usize,
    asked: Vec<Effect>,
}

impl World for Still {
    fn should_end(&self) -> bool {
        false
    }
    fn start(&mut self, effect: Effect, _: &State) {
        self.asked.push(effect);
    }
    fn save(&mut self, screen: &Buffer, _: &State) -> Msg {
        self.saved += 1;
        assert_eq!(screen.area.width, 120);
        Msg::Saved(Ok(vec!["screen.svg".into()]))
    }
}

#[test]
fn the_loop_runs_on_any_backend() {
    let mut state = State::new("script".into(), THEME, (120, 40));
    state.has_laboratory = true;
    let mut script = vec![Msg::Blocks(small())];
    script.extend("8l123456s".chars().map(key));
    let mut terminal = Terminal::new(TestBackend::new(120, 40)).unwrap();
    let mut world = Still::default();
    let mut inbox = Script(script.into_iter());
    run(&mut terminal, &mut state, &mut inbox, &mut world).unwrap();
    assert_eq!((world.saved, state.view), (1, View::Compare));
    assert!(
        matches!(world.asked[..], [Effect::WhatIf { .. }, ..]),
        "{:?}",
        world.asked
    );
    assert_eq!(state.message.as_deref(), Some("saved screen.svg"));
}

#[test]
fn screenshots_need_no_terminal_and_the_rest_does() {
    let file = "fixtures/small.moeplan";
    let ran = moeplan(&format!("dash {file} --screenshot overview --size 80x24"));
    assert_eq!(ran.exit, Exit::Done, "{}", ran.stderr);
    assert!(ran.stdout.contains("this step"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("screen.svg");
    let ran = moeplan(&format!(
        "dash {file} --screenshot cluster --keys m --output {}",
        path.display()
    ));
    assert_eq!(ran.exit, Exit::Done, "{}", ran.stderr);
    let svg = std::fs::read_to_string(path).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("all 16 GPUs by compute"));
    let path = folder.path().join("screen.png");
    let ran = moeplan(&format!(
        "dash {file} --screenshot overview --output {}",
        path.display()
    ));
    assert_eq!(ran.exit, Exit::Done, "{}", ran.stderr);
    assert!(std::fs::read(path).unwrap().starts_with(b"\x89PNG"));
    // Standard output of a test is no terminal.
    let ran = moeplan(&format!("dash {file}"));
    assert_eq!(ran.exit, Exit::MachineLacks);
    assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
    for (args, says) in [
        (
            "dash nowhere.moeplan --screenshot overview",
            "nowhere.moeplan: ",
        ),
        (
            "dash fixtures/small.moeplan --gpus 8 --screenshot overview",
            "either a file or settings",
        ),
        (
            "dash Cargo.toml --screenshot overview",
            "Cargo.toml: byte 0: expected a run file",
        ),
        (
            "dash fixtures/small.moeplan --screenshot overview --at-step 99",
            "--at-step",
        ),
        ("dash fixtures/small.moeplan --speed 0", "--speed: expected"),
        (
            "dash fixtures/small.moeplan --screenshot overview --size 80",
            "expected columns x rows",
        ),
    ] {
        let ran = moeplan(args);
        assert_eq!(ran.exit, Exit::BadInput, "{args}: {}", ran.stderr);
        assert!(ran.stderr.contains(says), "{args}: {}", ran.stderr);
    }
}

/// `fixtures/cluster.moeplan`: `moeplan simulate --padding dropless --trace digits --steps 2 --record
/// cluster.moeplan`, 2,048 GPUs.
#[test]
fn the_picture_of_the_readme_is_of_today() {
    let folder = tempfile::tempdir().unwrap();
    let drawn = folder.path().join("drawn.svg");
    let ran = moeplan(&format!(
        "dash fixtures/cluster.moeplan --screenshot cluster --size 120x40 --output {}",
        drawn.display()
    ));
    assert_eq!(ran.exit, Exit::Done, "{}", ran.stderr);
    let drawn = std::fs::read_to_string(drawn).unwrap();
    let picture = "../docs/dashboard.svg";
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(picture, &drawn).unwrap();
    }
    let kept = std::fs::read_to_string(picture).unwrap_or_default();
    assert!(
        kept == drawn,
        "UPDATE_GOLDEN=1 cargo test the_picture draws {picture} anew"
    );
}

fn any_key() -> impl Strategy<Value = Msg> {
    let code = prop_oneof![
        6 => proptest::char::range(' ', '~').prop_map(KeyCode::Char),
        1 => any::<char>().prop_map(KeyCode::Char),
        4 => proptest::sample::select(vec![
            KeyCode::Enter, KeyCode::Esc, KeyCode::Backspace, KeyCode::Tab, KeyCode::BackTab,
            KeyCode::Left, KeyCode::Right, KeyCode::Up, KeyCode::Down, KeyCode::Home, KeyCode::End,
            KeyCode::PageUp, KeyCode::F(1), KeyCode::Null,
        ]),
    ];
    code.prop_map(|code| Msg::Key(KeyEvent::from(code)))
}

fn any_msg() -> impl Strategy<Value = Msg> {
    let mouse = (0..310u16, 0..90u16, 0..4u8).prop_map(|(column, row, kind)| {
        let kind = match kind {
            0 => MouseEventKind::ScrollUp,
            1 => MouseEventKind::ScrollDown,
            2 => MouseEventKind::Moved,
            _ => MouseEventKind::Down(MouseButton::Left),
        };
        Msg::Mouse(MouseEvent {
            kind,
            column,
            row,
            modifiers: KeyModifiers::NONE,
        })
    });
    let size = (1..310u16, 1..90u16).prop_map(|(columns, rows)| Msg::Resize(columns, rows));
    let blocks = (0..small().len()).prop_map(|at| Msg::Blocks(vec![small().swap_remove(at)]));
    prop_oneof![
        12 => any_key(),
        4 => mouse,
        2 => size,
        1 => Just(Msg::Blocks(small())),
        1 => blocks,
        1 => Just(Msg::Restart),
        2 => (0..5_000u64).prop_map(|ms| Msg::Tick(Duration::from_millis(ms))),
        1 => Just(Msg::Points(Points::parse(SWEEP, "x").unwrap())),
        1 => Just(Msg::WhatIf(Ok(Box::new(answered())))),
        1 => Just(Msg::Detail(5, 1, Err("no".into()))),
        1 => Just(Msg::Failed("gone".into())),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// The buffer panics where something is drawn outside it.
    #[test]
    fn no_input_harms_it(msgs in proptest::collection::vec(any_msg(), 1..40), loaded_first: bool) {
        let mut state = State::new("any".into(), THEME, (80, 24));
        state.has_laboratory = true;
        if loaded_first {
            update(&mut state, Msg::Blocks(small()));
        }
        for msg in msgs {
            update(&mut state, msg);
            let (columns, rows) = state.size;
            let mut terminal = Terminal::new(TestBackend::new(columns, rows)).unwrap();
            terminal.draw(|frame| view(&state, frame)).unwrap();
        }
    }
}
