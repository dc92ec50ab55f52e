//! Owns the report as a page and as a picture. Never measures.

use maud::html;

use super::report::Report;
use super::text::cells;
use crate::report::page::{self, Page};
use crate::report::wakeups::{self, Bar};

const TITLE: &str = "late wake-ups beside each rival";

impl Report {
    /// One self-contained page. `command_line` is what was typed to make it.
    ///
    /// # Errors
    /// When drawing the chart fails, which no report should cause.
    pub fn html(&self, command_line: &str) -> anyhow::Result<String> {
        let chart = wakeups::chart(TITLE, &self.bars())?;
        let body = html! {
            h1 { "Real-time wake-ups while guest memory changes" }
            p.soft { (page::host_line(&self.host)) }
            (page::warnings(self.complete, self.settings.quick))
            h2 { "How late a timer wakes up" }
            @for words in self.setting() { p { (words) "." } }
            div.charts { figure {
                figcaption { "Late wake-ups " span.soft { (wakeups::NOTE) } }
                (maud::PreEscaped(&chart))
            } }
            h2 { "Figures" }
            (self.figures())
            h2 { "Aims of vm-remap" }
            (page::aims(&self.aims))
        };
        let title = format!("vm-remap bench --jitter: {}", self.host.machine);
        Ok(page::page(&Page {
            title: &title,
            body,
            command_line,
        }))
    }

    /// The chart alone, on paper of its own.
    ///
    /// # Errors
    /// When drawing it fails, which no report should cause.
    pub fn svg(&self) -> anyhow::Result<String> {
        wakeups::picture(TITLE, &self.bars())
    }

    fn bars(&self) -> Vec<Bar> {
        let bar = |(name, wakeups): (&'static str, Option<super::Wakeups>)| Bar {
            name,
            figures: wakeups.map(|all| [all.p50_us, all.p999_us, all.max_us]),
        };
        self.phases().into_iter().map(bar).collect()
    }

    fn figures(&self) -> maud::Markup {
        let heads = [
            "beside",
            "p50 µs",
            "p99.9 µs",
            "max µs",
            "p50 × idle",
            "p99.9 × idle",
            "max × idle",
            "missed",
        ];
        html! {
            div.scroll { table.figures {
                thead { tr { @for head in heads { th { (head) } } } }
                tbody { @for (name, wakeups) in self.phases() {
                    tr.own[name == "fixed"] {
                        td { (name) }
                        @for cell in cells(wakeups.as_ref()) { td { (cell) } }
                    }
                } }
            } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;

    #[test]
    fn page_and_picture_show_every_phase_and_its_figures() {
        let page = report().html("vm-remap bench --jitter").unwrap();
        let picture = report().svg().unwrap();
        assert!(picture.starts_with("<svg ") && picture.trim_end().ends_with("</svg>"));
        for name in ["idle", "memslot", "memslot-precise", "plain", "fixed"] {
            assert!(picture.contains(name) && page.contains(name), "{name}");
        }
        assert!(page.contains("SCHED_FIFO 2") && page.contains("✓ met"));
        assert!(picture.contains("not measured") && !picture.contains("NaN"));
    }
}
