//! A report as one HTML file that needs nothing else.

use super::page::{Cell, Figure, Page, Section, Table};
use std::fmt::Write as _;

const STYLE: &str = include_str!("report.css");
const SCRIPT: &str = include_str!("report.js");

/// The file.
pub(super) fn render(page: &Page) -> String {
    let mut html = String::new();
    let title = escape(&page.title);
    html += "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n";
    html += "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n";
    html += "<link rel=\"icon\" href=\"data:,\">\n";
    let _ = write!(
        html,
        "<title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n"
    );
    for line in &page.about {
        let _ = writeln!(html, "<p>{}</p>", escape(line));
    }
    html += "<nav><ul>\n";
    for (index, section) in page.sections.iter().enumerate() {
        let _ = writeln!(
            html,
            "<li><a href=\"#s{index}\">{}</a></li>",
            escape(&section.title)
        );
    }
    html += "<li><a href=\"#again\">To make it again</a></li>\n</ul></nav>\n";
    for (index, part) in page.sections.iter().enumerate() {
        section(&mut html, index, part);
    }
    html += "<section id=\"again\">\n<h2>To make it again</h2>\n<dl>\n";
    for (name, value) in &page.facts {
        let _ = writeln!(html, "<dt>{}</dt><dd>{}</dd>", escape(name), escape(value));
    }
    html += "</dl>\n";
    let _ = write!(
        html,
        "<details><summary>Settings in force</summary>\n<pre>{}</pre>\n</details>\n</section>\n",
        escape(&page.settings)
    );
    let _ = write!(
        html,
        "</main>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n"
    );
    html
}

fn section(html: &mut String, index: usize, section: &Section) {
    let _ = write!(
        html,
        "<section id=\"s{index}\">\n<h2>{}</h2>\n",
        escape(&section.title)
    );
    for text in &section.text {
        let _ = writeln!(html, "<p>{}</p>", escape(text));
    }
    for each in &section.figures {
        figure(html, each);
    }
    for each in &section.tables {
        table(html, each);
    }
    *html += "</section>\n";
}

fn figure(html: &mut String, figure: &Figure) {
    // An image named for those who cannot see it; its own size is a hint only.
    let label = escape(&figure.caption);
    let svg = figure.svg.replacen(
        "<svg",
        &format!("<svg role=\"img\" aria-label=\"{label}\""),
        1,
    );
    let _ = write!(
        html,
        "<figure id=\"{}\">\n{svg}\n<figcaption>{label}</figcaption>\n<details><summary>Numbers</summary>\n",
        escape(&figure.id)
    );
    table(html, &figure.data);
    *html += "</details>\n</figure>\n";
}

fn table(html: &mut String, table: &Table) {
    *html += "<div class=\"wide\"><table>\n";
    if !table.caption.is_empty() {
        let _ = writeln!(html, "<caption>{}</caption>", escape(&table.caption));
    }
    *html += "<thead><tr>";
    for (index, column) in table.columns.iter().enumerate() {
        let cells = table.rows.iter().filter_map(|row| row.get(index));
        let class = match cells.into_iter().any(|cell| cell.value.is_some()) {
            true => "",
            false => " class=\"words\"",
        };
        let _ = write!(
            html,
            "<th scope=\"col\"{class}><button type=\"button\">{}</button></th>",
            escape(column)
        );
    }
    *html += "</tr></thead>\n<tbody>\n";
    for row in &table.rows {
        *html += "<tr>";
        for Cell { text, value } in row {
            let text = escape(text);
            let _ = match value {
                Some(value) => write!(html, "<td data-value=\"{value}\">{text}</td>"),
                None => write!(html, "<td class=\"words\">{text}</td>"),
            };
        }
        *html += "</tr>\n";
    }
    *html += "</tbody>\n</table></div>\n";
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            _ => escaped.push(letter),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_users_name_cannot_become_markup() {
        let page = Page {
            title: "<script>alert(1)</script>".into(),
            settings: "a && b".into(),
            ..Page::default()
        };
        let html = render(&page);
        assert!(!html.contains("<script>alert"));
        assert!(html.contains("a &amp;&amp; b"));
    }
}
