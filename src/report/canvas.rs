//! Owns drawing into an SVG: boxes, lines and words at floating-point places.
//! Never knows what is drawn.
//!
//! Colours are written as plain `#RRGGBB` attributes, so that a page may give
//! each of them another value in the dark by an attribute selector.

use anyhow::{Context as _, anyhow};
use plotters::coord::Shift;
use plotters::prelude::{
    Color as _, DrawingArea, FontFamily, FontStyle, IntoDrawingArea as _, IntoFont as _,
    PathElement, Rectangle, SVGBackend, Text,
};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{ShapeStyle, TextStyle};

/// A colour of the [palette].
pub(super) use plotters::prelude::RGBColor as Colour;

/// Hues that people with any of the common colour blindnesses tell apart
/// (they differ in lightness too), and the tones of the paper.
pub(super) mod palette {
    use super::Colour;

    pub(in crate::report) const RED: Colour = Colour(0xC4, 0x4E, 0x00);
    pub(in crate::report) const ORANGE: Colour = Colour(0xE6, 0x9F, 0x00);
    pub(in crate::report) const SKY: Colour = Colour(0x56, 0xB4, 0xE9);
    pub(in crate::report) const BLUE: Colour = Colour(0x00, 0x62, 0xA8);
    pub(in crate::report) const GREY: Colour = Colour(0x8C, 0x95, 0x9F);
    pub(in crate::report) const INK: Colour = Colour(0x1F, 0x23, 0x28);
    pub(in crate::report) const SOFT: Colour = Colour(0x59, 0x63, 0x6E);
    pub(in crate::report) const LINE: Colour = Colour(0xD1, 0xD9, 0xE0);
    pub(in crate::report) const PAPER: Colour = Colour(0xFF, 0xFF, 0xFF);
}

const FONT: &str = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif";
/// plotters divides a font size by this before it writes it.
const FONT_SCALE: f64 = 1.24;

/// Where the given place is, relative to the words.
#[derive(Debug, Clone, Copy)]
pub(super) enum Side {
    /// At their left end.
    Left,
    /// In their middle.
    Middle,
    /// At their right end.
    Right,
}

/// How words look.
#[derive(Debug, Clone, Copy)]
pub(super) struct Words {
    /// Height in pixels.
    pub(super) size: f64,
    /// Their colour.
    pub(super) colour: Colour,
    /// Whether they are bold.
    pub(super) bold: bool,
    /// What their place means; vertically it is always the middle.
    pub(super) side: Side,
}

impl Words {
    /// Words to the right of their place.
    pub(super) const fn new(size: f64, colour: Colour) -> Self {
        Self {
            size,
            colour,
            bold: false,
            side: Side::Left,
        }
    }

    pub(super) const fn bold(mut self) -> Self {
        self.bold = true;
        self
    }

    pub(super) const fn side(mut self, side: Side) -> Self {
        self.side = side;
        self
    }
}

/// A picture while it is being drawn.
pub(super) struct Canvas<'a> {
    area: DrawingArea<SVGBackend<'a>, Shift>,
}

/// Draws a picture of `width` by `height` pixels and returns its SVG. The
/// title is for those who cannot see it.
pub(super) fn draw(
    (width, height): (u32, u32),
    title: &str,
    paint: impl FnOnce(&Canvas<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<String> {
    let mut svg = String::new();
    let canvas = Canvas {
        area: SVGBackend::with_string(&mut svg, (width, height)).into_drawing_area(),
    };
    paint(&canvas)?;
    canvas.area.present().context("cannot finish the picture")?;
    drop(canvas);
    let (tag, rest) = svg
        .split_once('>')
        .ok_or_else(|| anyhow!("cannot find the start of the picture"))?;
    let title = maud::html! { title { (title) } }.into_string();
    Ok(format!("{tag} role=\"img\">{title}{rest}"))
}

impl Canvas<'_> {
    /// A filled box.
    pub(super) fn rect(
        &self,
        (x, y): (f64, f64),
        (width, height): (f64, f64),
        colour: Colour,
    ) -> anyhow::Result<()> {
        let corners = [pixel(x, y), pixel(x + width, y + height)];
        self.area
            .draw(&Rectangle::new(corners, colour.filled()))
            .context("cannot draw a box")
    }

    /// A straight line.
    pub(super) fn line(
        &self,
        from: (f64, f64),
        to: (f64, f64),
        colour: Colour,
        width: u32,
    ) -> anyhow::Result<()> {
        let style = ShapeStyle::from(colour).stroke_width(width);
        let points = [pixel(from.0, from.1), pixel(to.0, to.1)];
        self.area
            .draw(&PathElement::new(points, style))
            .context("cannot draw a line")
    }

    /// Words; plotters escapes them.
    pub(super) fn words(&self, place: (f64, f64), words: Words, text: &str) -> anyhow::Result<()> {
        let weight = if words.bold {
            FontStyle::Bold
        } else {
            FontStyle::Normal
        };
        let side = match words.side {
            Side::Left => HPos::Left,
            Side::Middle => HPos::Center,
            Side::Right => HPos::Right,
        };
        let style: TextStyle<'_> = (FontFamily::Name(FONT), words.size * FONT_SCALE, weight)
            .into_font()
            .color(&words.colour)
            .pos(Pos::new(side, VPos::Center));
        self.area
            .draw(&Text::new(text.to_owned(), pixel(place.0, place.1), style))
            .context("cannot draw words")
    }
}

/// plotters counts whole pixels.
#[expect(
    clippy::cast_possible_truncation,
    reason = "rounded and clamped first; a picture has a few hundred pixels"
)]
fn pixel(x: f64, y: f64) -> (i32, i32) {
    let whole = |place: f64| place.round().clamp(-10_000.0, 10_000.0) as i32;
    (whole(x), whole(y))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draw_escapes_title_and_words() {
        let svg = draw((100, 50), "a < b", |canvas| {
            canvas.words((1.0, 1.0), Words::new(12.0, palette::INK), "<&>")?;
            canvas.rect((0.4, 0.6), (10.0, 5.0), palette::RED)
        })
        .unwrap();
        assert!(
            svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"),
            "{svg}"
        );
        assert!(svg.contains("<title>a &lt; b</title>"), "{svg}");
        assert!(
            svg.contains("&lt;&amp;&gt;") && svg.contains("#C44E00"),
            "{svg}"
        );
    }

    #[test]
    fn pixel_survives_what_is_not_a_number() {
        assert_eq!(pixel(f64::NAN, f64::INFINITY), (0, 10_000));
    }
}
