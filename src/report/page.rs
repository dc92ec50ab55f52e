//! Owns what every page has: head, style, the aims and how it was made. A page needs nothing from
//! outside and has no script. Never trusts a string: the template escapes all but the style.

use super::{Aim, Host, rows, units};
use maud::{DOCTYPE, Markup, PreEscaped, html};

pub(super) const STYLE: &str = include_str!("page.css");

/// What is different in each page.
#[derive(Debug)]
pub(crate) struct Page<'a> {
    pub(crate) title: &'a str,
    pub(crate) body: Markup,
    /// What was typed to make it.
    pub(crate) command_line: &'a str,
}

/// One self-contained page.
pub(crate) fn page(page: &Page<'_>) -> String {
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (page.title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                (page.body)
                h2 { "Made by" }
                pre { code { (page.command_line) } }
                p.soft { "vm-remap " (env!("CARGO_PKG_VERSION")) }
            }
        }
    };
    markup.into_string()
}

/// The host in one line.
pub(crate) fn host_line(host: &Host) -> String {
    format!(
        "{}, kernel {}, {}, TDP MMU {}",
        host.machine,
        host.kernel,
        host.kvm_module,
        rows::tdp_mmu(host.tdp_mmu)
    )
}

/// What a reader has to know before the figures.
pub(crate) fn warnings(complete: bool, quick: bool) -> Markup {
    html! {
        @if !complete {
            p.warning { "This run was interrupted. " (units::ABSENT) " is what was not measured." }
        }
        @if quick {
            p.warning { "This was a quick run: a first look, too short to judge by." }
        }
    }
}

/// The aims as a table.
pub(crate) fn aims(aims: &[Aim]) -> Markup {
    html! {
        div.scroll {
            table.words {
                thead { tr { th { "aim" } th { "measured" } th { "should be" } th { "verdict" } } }
                tbody {
                    @for aim in aims {
                        tr {
                            td.wide { (aim.name) }
                            td { (units::measured(aim)) }
                            td { (units::bound(aim.aim)) }
                            td { span.(class(aim)) { (sign(aim)) (aim.verdict()) } }
                        }
                    }
                }
            }
        }
    }
}

fn class(aim: &Aim) -> &'static str {
    match aim.met {
        Some(true) => "met",
        Some(false) => "missed",
        None => "soft",
    }
}

/// Colour alone must not carry the verdict.
fn sign(aim: &Aim) -> &'static str {
    match aim.met {
        Some(true) => "✓ ",
        Some(false) => "✗ ",
        None => "",
    }
}
