//! Keys: one table that both decides what a key does and draws the help.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

/// What a key asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Ends the dashboard.
    Quit,
    /// Closes what is open, or goes up.
    Back,
    /// Shows the keys.
    Help,
    /// The next view.
    NextView,
    /// The view before.
    PreviousView,
    /// The view of this number, from 0.
    View(u8),
    /// Plays or pauses.
    Play,
    /// One step back.
    StepBack,
    /// One step on.
    StepOn,
    /// A tenth of the run back.
    JumpBack,
    /// A tenth of the run on.
    JumpOn,
    /// The first step.
    First,
    /// The last step, and on as the run grows.
    Last,
    /// Left.
    Left,
    /// Right.
    Right,
    /// Up.
    Up,
    /// Down.
    Down,
    /// Larger, faster.
    More,
    /// Smaller, slower.
    Less,
    /// Everything in sight again.
    Reset,
    /// The next strategy.
    NextStrategy,
    /// The strategy before.
    PreviousStrategy,
    /// The next thing to show.
    Metric,
    /// The next order.
    Sort,
    /// Into what is selected.
    Enter,
    /// Text that rows must hold.
    Filter,
    /// The what-if view.
    WhatIf,
    /// Dark or light.
    Theme,
    /// Writes the screen to files.
    Save,
}

/// A line of the table: keys, what they ask for, how they are shown, what they do.
pub struct Binding {
    /// The keys.
    pub keys: &'static [KeyCode],
    /// What they ask for.
    pub action: Action,
    /// How the help shows them; empty where another line already does.
    pub shown: &'static str,
    /// What the help says.
    pub does: &'static str,
}

const fn bind(
    keys: &'static [KeyCode],
    action: Action,
    shown: &'static str,
    does: &'static str,
) -> Binding {
    Binding {
        keys,
        action,
        shown,
        does,
    }
}

use KeyCode::{BackTab, Backspace, Char, Down, End, Enter, Esc, Home, Left, Right, Tab, Up};

/// All keys.
pub const KEYS: [Binding; 36] = [
    bind(&[Char('q')], Action::Quit, "q  Ctrl-C", "quit"),
    bind(&[Char('?'), KeyCode::F(1)], Action::Help, "?", "these keys"),
    bind(
        &[Tab],
        Action::NextView,
        "tab  1-8",
        "next view, or that view",
    ),
    bind(&[BackTab], Action::PreviousView, "", ""),
    bind(&[Char('1')], Action::View(0), "", ""),
    bind(&[Char('2')], Action::View(1), "", ""),
    bind(&[Char('3')], Action::View(2), "", ""),
    bind(&[Char('4')], Action::View(3), "", ""),
    bind(&[Char('5')], Action::View(4), "", ""),
    bind(&[Char('6')], Action::View(5), "", ""),
    bind(&[Char('7')], Action::View(6), "", ""),
    bind(&[Char('8')], Action::View(7), "", ""),
    bind(
        &[Char(' ')],
        Action::Play,
        "space",
        "play or pause the steps",
    ),
    bind(
        &[Char(',')],
        Action::StepBack,
        ",  .",
        "a step back, a step on",
    ),
    bind(&[Char('.')], Action::StepOn, "", ""),
    bind(
        &[Char('<')],
        Action::JumpBack,
        "<  >",
        "a tenth of the run back, on",
    ),
    bind(&[Char('>')], Action::JumpOn, "", ""),
    bind(
        &[Home, Char('g')],
        Action::First,
        "g  G",
        "first step, last step (and follow)",
    ),
    bind(&[End, Char('G')], Action::Last, "", ""),
    bind(
        &[Left, Char('h')],
        Action::Left,
        "arrows  hjkl",
        "move, pan, choose",
    ),
    bind(&[Right, Char('l')], Action::Right, "", ""),
    bind(&[Up, Char('k')], Action::Up, "", ""),
    bind(&[Down, Char('j')], Action::Down, "", ""),
    bind(
        &[Char('+'), Char('=')],
        Action::More,
        "+  -  0",
        "zoom the timeline; else speed of play",
    ),
    bind(&[Char('-'), Char('_')], Action::Less, "", ""),
    bind(&[Char('0')], Action::Reset, "", ""),
    bind(
        &[Char(']'), Char('n')],
        Action::NextStrategy,
        "[  ]",
        "strategy before, next",
    ),
    bind(&[Char('['), Char('p')], Action::PreviousStrategy, "", ""),
    bind(&[Char('m')], Action::Metric, "m", "what is shown"),
    bind(&[Char('o')], Action::Sort, "o", "order"),
    bind(
        &[Enter],
        Action::Enter,
        "enter  esc",
        "into what is selected, and back",
    ),
    bind(&[Esc, Backspace], Action::Back, "", ""),
    bind(
        &[Char('/')],
        Action::Filter,
        "/",
        "keep only what holds a text",
    ),
    bind(
        &[Char('w')],
        Action::WhatIf,
        "w",
        "what if: other settings beside this run",
    ),
    bind(&[Char('t')], Action::Theme, "t", "dark or light"),
    bind(
        &[Char('s')],
        Action::Save,
        "s",
        "save the screen as SVG and text",
    ),
];

/// What `key` asks for.
pub fn action(key: KeyEvent) -> Option<Action> {
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        return matches!(key.code, Char('c')).then_some(Action::Quit);
    }
    KEYS.iter()
        .find(|binding| binding.keys.contains(&key.code))
        .map(|binding| binding.action)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_is_bound_twice() {
        let mut keys: Vec<String> = KEYS
            .iter()
            .flat_map(|binding| binding.keys)
            .map(|key| format!("{key:?}"))
            .collect();
        let all = keys.len();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), all);
    }
}
