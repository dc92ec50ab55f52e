//! Owns the report as the body of a page. Never trusts a string: the
//! template escapes all but the pictures.

use super::charts;
use super::page::{self, Page};
use super::rows::{self, Row, SENTENCES};
use super::{Latencies, Quantiles, Report, units};
use maud::{Markup, PreEscaped, html};

const OPERATIONS: [(&str, charts::Pick); 3] = [
    ("map", |latencies| latencies.map_us),
    ("replace", |latencies| latencies.replace_us),
    ("unmap", |latencies| latencies.unmap_us),
];

/// One self-contained page. `command_line` is what was typed to make it.
///
/// # Errors
/// When drawing a chart fails, which no report should cause.
pub fn html(report: &Report, command_line: &str) -> anyhow::Result<String> {
    let charts = charts(report)?;
    let body = html! {
        (head(report))
        h2 { "What the guest and the caller see" }
        (charts)
        h2 { "Figures" }
        (figures(report))
        h2 { "Aims of vm-remap" }
        (page::aims(&report.aims()))
        h2 { "Host and settings" }
        (facts(report))
    };
    let title = format!("vm-remap bench: {}", report.host.machine);
    Ok(page::page(&Page {
        title: &title,
        body,
        command_line,
    }))
}

fn head(report: &Report) -> Markup {
    let fixed = report.backends.fixed.rival;
    let memslot = report.backends.memslot.unwrap_or_default();
    let aims = report.aims();
    let met = aims.iter().filter(|aim| aim.met == Some(true)).count();
    let unmeasured = match aims.iter().filter(|aim| aim.met.is_none()).count() {
        0 => "on this host".to_owned(),
        count => format!("{count} not measured"),
    };
    let tiles = [
        (
            "guest work kept",
            or_absent(fixed.work_kept, units::percent),
            or_absent(memslot.work_kept, units::percent),
        ),
        (
            "map + unmap, median",
            or_absent(fixed.latencies.round_trip_us(), micros),
            or_absent(memslot.latencies.round_trip_us(), micros),
        ),
        (
            "outside faults per operation",
            or_absent(fixed.collateral_faults_per_op, units::per_op),
            or_absent(memslot.collateral_faults_per_op, units::per_op),
        ),
    ];
    html! {
        h1 { "Changing guest memory while the guest runs" }
        p.soft { (page::host_line(&report.host)) }
        (page::warnings(report.complete, report.settings.quick))
        div.tiles {
            @for (name, own, other) in &tiles {
                div.tile { (name) b { (own) } span.soft { "memslot: " (other) } }
            }
            div.tile { "aims met" b { (met) " of " (aims.len()) } span.soft { (unmeasured) } }
        }
    }
}

fn micros(us: f64) -> String {
    format!("{} µs", units::micros_short(us))
}

fn or_absent(figure: Option<f64>, write: fn(f64) -> String) -> String {
    figure.map_or_else(|| units::ABSENT.to_owned(), write)
}

fn charts(report: &Report) -> anyhow::Result<Markup> {
    let mut figures = vec![
        (
            "Guest work kept",
            "share of undisturbed passes per second of vCPU time; more is better",
            charts::work_kept(report)?,
        ),
        (
            "Collateral faults",
            "guest faults outside the remapped range, per operation; less is better",
            charts::collateral(report)?,
        ),
    ];
    for (name, pick) in OPERATIONS {
        figures.push((
            name,
            "µs, log scale; bar: median, mark: 99th percentile",
            charts::latency(report, &format!("latency of {name} per rival"), pick)?,
        ));
    }
    Ok(html! {
        div.charts {
            @for (name, note, picture) in &figures {
                figure {
                    figcaption { (capital(name)) " " span.soft { (note) } }
                    (PreEscaped(picture))
                }
            }
            figure {
                figcaption { "The rivals" }
                (sentences(report))
            }
        }
    })
}

/// A caption begins with a capital letter.
fn capital(name: &str) -> String {
    let mut letters = name.chars();
    letters.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(letters).collect()
    })
}

fn sentences(report: &Report) -> Markup {
    let rows = rows::rows(report);
    html! {
        @for (name, sentence) in SENTENCES {
            p {
                @if let Some(row) = rows.iter().find(|row| row.name == name) { (key(row)) }
                b { (name) } ": " (sentence) "."
            }
        }
    }
}

/// The colour of a rival, by the same attribute the pictures use.
fn key(row: &Row) -> Markup {
    let colour = row.colour;
    let fill = format!("#{:02X}{:02X}{:02X}", colour.0, colour.1, colour.2);
    html! {
        svg.key viewBox="0 0 10 10" aria-hidden="true" { rect width="10" height="10" fill=(fill) {} }
    }
}

fn figures(report: &Report) -> Markup {
    html! {
        div.scroll {
            table.figures {
                thead {
                    tr {
                        th rowspan="2" { "rival" }
                        @for (name, _) in OPERATIONS { th colspan="3" { (name) " µs" } }
                        th rowspan="2" { "guest" br; "work kept" }
                        th rowspan="2" { "outside" br; "faults per op" }
                        th rowspan="2" { "gap exits/" br; "stale reads" }
                        th rowspan="2" { "slot calls" br; "per op" }
                    }
                    tr { @for _ in OPERATIONS { th { "p50" } th { "p99" } th { "max" } } }
                }
                tbody { @for row in rows::rows(report) { (line(&row)) } }
            }
        }
    }
}

fn line(row: &Row) -> Markup {
    let latencies: Latencies = row.latencies.unwrap_or_default();
    let rival = row.rival.unwrap_or_default();
    let figure = |quantiles: Option<Quantiles>, read: fn(Quantiles) -> f64| {
        or_absent(quantiles.map(read), units::micros)
    };
    html! {
        tr.own[row.name.starts_with("fixed")] {
            td { (key(row)) (row.name) }
            @for (_, pick) in OPERATIONS {
                td { (figure(pick(&latencies), |quantiles| quantiles.p50)) }
                td { (figure(pick(&latencies), |quantiles| quantiles.p99)) }
                td { (figure(pick(&latencies), |quantiles| quantiles.max)) }
            }
            td { (or_absent(rival.work_kept, units::percent)) }
            td { (or_absent(rival.collateral_faults_per_op, units::per_op)) }
            td { (units::gap(&rival)) }
            td { (or_absent(rival.slot_calls_per_op, units::per_op)) }
        }
    }
}

fn facts(report: &Report) -> Markup {
    html! {
        table.words.facts {
            tbody { @for (label, value) in rows::facts(report) { tr { td.soft { (label) } td { (value) } } } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::page::STYLE;
    use super::super::sample;
    use super::*;

    /// Checks that each opened tag is closed in order.
    fn assert_well_formed(page: &str) {
        let void = ["meta", "br", "!DOCTYPE"];
        let mut open = Vec::new();
        for part in page.split('<').skip(1) {
            let (tag, _) = part.split_once('>').expect("a tag that never ends");
            let name = tag.split_whitespace().next().unwrap();
            if let Some(name) = name.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name), "{tag}");
            } else if !tag.ends_with('/') && !void.contains(&name) {
                open.push(name);
            }
        }
        assert!(open.is_empty(), "{open:?}");
    }

    #[test]
    fn html_is_well_formed() {
        for report in [sample::report(), sample::interrupted()] {
            let page = html(&report, "vm-remap bench").unwrap();
            assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>"));
            assert_well_formed(&page);
            assert_eq!(page.matches("<figure>").count(), 6);
        }
    }

    #[test]
    fn html_escapes_the_host_and_the_command_line() {
        let mut report = sample::report();
        report.host.zap = "<script>alert('zap')</script>".into();
        let page = html(&report, "vm-remap bench --html \"<b>&\"").unwrap();
        assert!(!page.contains("<script") && !page.contains("<9000>"));
        assert!(page.contains("Example CPU &lt;9000&gt; &amp; Co"));
        assert!(page.contains("&lt;b&gt;&amp;&quot;"));
        assert_well_formed(&page);
    }

    #[test]
    fn html_loads_nothing_from_outside() {
        let page = html(&sample::report(), "vm-remap bench").unwrap();
        for word in ["<script", "<link", "src=", "href=", "url(", "@import"] {
            assert!(!page.contains(word), "{word}");
        }
    }

    #[test]
    fn html_shows_every_rival_and_verdict() {
        let page = html(&sample::report(), "vm-remap bench").unwrap();
        for part in ["memslot-precise", "✓ met", "✗ missed", "98.7 %", "4186"] {
            assert!(page.contains(part), "{part}");
        }
        let page = html(&sample::interrupted(), "vm-remap bench").unwrap();
        assert!(page.contains("interrupted") && page.contains("not measured"));
    }

    #[test]
    fn style_knows_every_colour_of_the_pictures() {
        let page = html(&sample::report(), "vm-remap bench").unwrap();
        for part in page.split(" fill=\"#").skip(1) {
            let colour = part.get(..6).unwrap();
            assert!(STYLE.contains(&format!("[fill=\"#{colour}\"]")), "{colour}");
        }
    }
}
