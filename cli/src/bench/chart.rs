//! The starts as an SVG: one bar for each runtime, husk's made of its phases, and their sums below.

use std::fmt::Write as _;

use super::report::{Report, Runtime, Who};
use super::table::{interval, plural};

/// Pixels.
const WIDTH: f64 = 1000.0;
/// Of the runtimes' names, left of the bars.
const LEFT: f64 = 180.0;
/// Of the totals, right of the longest bar.
const RIGHT: f64 = 170.0;
/// Where the first bar is.
const TOP: f64 = 112.0;
/// From one bar to the next.
const PITCH: f64 = 52.0;
/// Of a bar.
const BAR: f64 = 34.0;
/// Of a row of the sums.
const ROW: f64 = 20.0;
/// A part narrower than this has no room for its value.
const NARROWEST: f64 = 34.0;
/// Parts of the axis, about.
const TICKS: f64 = 8.0;

/// In the legend's order: name and colour (Okabe and Ito's, which colour-blind people tell apart).
pub const LEGEND: [(Who, &str, &str); 6] = [
    (Who::Containerd, "ctr and containerd", "#b8bec6"),
    (Who::Shim, "shim", "#0072b2"),
    (Who::Vmm, "VMM", "#56b4e9"),
    (Who::Kernel, "guest kernel", "#e69f00"),
    (Who::Agent, "agent", "#009e73"),
    (Who::Container, "container", "#cc79a7"),
];
/// Of a runtime without time stamps.
const WHOLE: &str = "#dfe3e8";

/// Draws the starts.
#[must_use]
pub fn svg(report: &Report) -> String {
    let most = report.runtimes.iter().map(|runtime| runtime.start.time.high.max(total(runtime))).fold(0.0, f64::max);
    let (step, end) = axis(most);
    let scale = (WIDTH - LEFT - RIGHT) / end;
    let bottom = TOP + PITCH * report.runtimes.len() as f64;
    let sums: Vec<&Runtime> = report.runtimes.iter().filter(|runtime| !runtime.phases.is_empty()).collect();
    let below = if sums.is_empty() { 0.0 } else { ROW * (sums.len() + 1) as f64 + 30.0 };
    let height = bottom + 56.0 + below;
    let mut out = String::new();
    let _ = writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"13\" fill=\"#1b1f24\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>"
    );
    text(
        &mut out,
        20.0,
        30.0,
        "font-size=\"18\" font-weight=\"bold\"",
        "Start of a container: ctr run --rm, from ctr's start to its end",
    );
    let host = &report.host;
    let about = format!(
        "{}; median of {} runs (in brackets: its {:.0} % interval); {}, kernel {}, containerd {}; {}",
        report.root,
        report.runs,
        report.runtimes.first().map_or(0.0, |runtime| runtime.start.time.coverage * 100.0),
        host.date,
        host.kernel,
        host.containerd,
        plural(host.cpus, "CPU", "CPUs"),
    );
    text(&mut out, 20.0, 50.0, "font-size=\"12\" fill=\"#57606a\"", &about);
    legend(&mut out, report);
    let count = (end / step).round();
    let mut at = 0.0;
    while at <= count {
        let x = LEFT + at * step * scale;
        let _ = writeln!(out, "<path d=\"M{x:.1} {:.1}V{bottom:.1}\" stroke=\"#e4e7eb\"/>", TOP - 8.0);
        text(&mut out, x, bottom + 18.0, "text-anchor=\"middle\" font-size=\"12\"", &number(at * step));
        at += 1.0;
    }
    let _ = writeln!(out, "<path d=\"M{LEFT} {bottom:.1}H{:.1}\" stroke=\"#57606a\"/>", LEFT + end * scale);
    text(&mut out, LEFT + end * scale / 2.0, bottom + 38.0, "text-anchor=\"middle\"", &unit(report));
    let mut y = TOP;
    for runtime in &report.runtimes {
        bar(&mut out, runtime, y, scale);
        y += PITCH;
    }
    if !sums.is_empty() {
        table(&mut out, &sums, bottom + 74.0);
    }
    out.push_str("</svg>\n");
    out
}

fn unit(report: &Report) -> String {
    match report.unit.as_str() {
        "ms" => "milliseconds".to_owned(),
        other => other.to_owned(),
    }
}

fn total(runtime: &Runtime) -> f64 {
    if runtime.phases.is_empty() {
        runtime.start.time.median
    } else {
        runtime.phases.iter().map(|part| part.time).sum()
    }
}

/// The distance of the axis' marks (1, 2 or 5 of some power of ten), and its end.
fn axis(most: f64) -> (f64, f64) {
    if !most.is_finite() || most <= 0.0 {
        return (1.0, 1.0);
    }
    let power = 10.0_f64.powf((most / TICKS).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|digit| digit * power).into_iter().find(|step| most / step <= TICKS);
    let step = step.unwrap_or(most);
    (step, (most / step).ceil() * step)
}

fn number(value: f64) -> String {
    if value.fract().abs() < 1e-9 { format!("{value:.0}") } else { format!("{value:.1}") }
}

fn legend(out: &mut String, report: &Report) {
    let with = report.runtimes.iter().any(|runtime| !runtime.phases.is_empty());
    let without = report.runtimes.iter().any(|runtime| runtime.phases.is_empty());
    let mut entries: Vec<(&str, &str)> = Vec::new();
    if with {
        entries.extend(LEGEND.iter().map(|(_, name, colour)| (*name, *colour)));
    }
    if without {
        entries.push(("whole run (the runtime has no time stamps)", WHOLE));
    }
    let mut x = 20.0;
    for (name, colour) in entries {
        let _ = writeln!(
            out,
            "<rect x=\"{x:.1}\" y=\"70\" width=\"13\" height=\"13\" fill=\"{colour}\" stroke=\"#57606a\" stroke-width=\"0.5\"/>"
        );
        text(out, x + 19.0, 81.0, "font-size=\"12\"", name);
        x += 46.0 + 6.4 * name.len() as f64;
    }
}

fn bar(out: &mut String, runtime: &Runtime, y: f64, scale: f64) {
    let middle = y + BAR / 2.0 + 4.5;
    text(out, LEFT - 12.0, middle, "text-anchor=\"end\"", &runtime.name);
    let whole = runtime.start.time;
    let mut x = LEFT;
    let mut block = |out: &mut String, time: f64, colour: &str, who: &str| {
        let width = time * scale;
        let _ = writeln!(
            out,
            "<rect x=\"{x:.2}\" y=\"{y:.1}\" width=\"{width:.2}\" height=\"{BAR}\" fill=\"{colour}\" stroke=\"#ffffff\" \
             stroke-width=\"0.7\"><title>{}: {time:.1}</title></rect>",
            escaped(who)
        );
        if width >= NARROWEST {
            let colour = if colour == "#0072b2" { "#ffffff" } else { "#1b1f24" };
            text(
                out,
                x + width / 2.0,
                middle,
                &format!("text-anchor=\"middle\" font-size=\"12\" fill=\"{colour}\""),
                &format!("{time:.1}"),
            );
        }
        x += width;
    };
    if runtime.phases.is_empty() {
        block(out, whole.median, WHOLE, "whole run");
    }
    for part in &runtime.phases {
        let (_, name, colour) = LEGEND[part.who as usize];
        block(out, part.time, colour, name);
    }
    // Where the median is.
    let (low, high, center) = (LEFT + whole.low * scale, LEFT + whole.high * scale, y + BAR + 5.0);
    let _ = writeln!(
        out,
        "<path d=\"M{low:.2} {:.1}v6m0 -3H{high:.2}m0 -3v6\" stroke=\"#1b1f24\" fill=\"none\"><title>interval of the median</title></path>",
        center - 3.0
    );
    let mut label = interval(&whole);
    if !runtime.printed {
        label.push_str(" *");
    }
    text(
        out,
        LEFT + total(runtime).max(whole.high) * scale + 10.0,
        middle,
        "font-weight=\"bold\" font-size=\"12\"",
        &label,
    );
    if !runtime.printed {
        text(
            out,
            LEFT - 12.0,
            middle + 15.0,
            "text-anchor=\"end\" font-size=\"11\" fill=\"#57606a\"",
            "* prints nothing",
        );
    }
}

/// Every part's sum, a row for each runtime.
fn table(out: &mut String, runtimes: &[&Runtime], top: f64) {
    let column = (WIDTH - LEFT - 40.0) / LEGEND.len() as f64;
    text(out, 20.0, top, "font-size=\"12\" font-weight=\"bold\"", "sum of each part");
    for (place, (_, name, _)) in (1..).zip(LEGEND) {
        let x = LEFT + column * f64::from(place);
        text(out, x, top, "text-anchor=\"end\" font-size=\"12\" font-weight=\"bold\"", name);
    }
    let mut y = top;
    for runtime in runtimes {
        y += ROW;
        text(out, 20.0, y, "font-size=\"12\"", &runtime.name);
        for (place, (who, ..)) in (1..).zip(LEGEND) {
            let sum: f64 = runtime.phases.iter().filter(|part| part.who == who).map(|part| part.time).sum();
            let x = LEFT + column * f64::from(place);
            text(out, x, y, "text-anchor=\"end\" font-size=\"12\"", &format!("{sum:.1}"));
        }
    }
}

fn text(out: &mut String, x: f64, y: f64, attributes: &str, words: &str) {
    let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" {attributes}>{}</text>", escaped(words));
}

fn escaped(words: &str) -> String {
    words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::report::example;
    use super::*;

    #[test]
    fn every_part_is_drawn_to_scale() {
        let drawn = svg(&example());
        // The axis ends at 300, over 650 pixels.
        assert!(
            drawn.contains(&format!("width=\"{:.2}\" height=\"34\" fill=\"#e69f00\"", 38.8 * 650.0 / 300.0)),
            "{drawn}"
        );
        assert!(drawn.contains(&format!("width=\"{:.2}\" height=\"34\" fill=\"{WHOLE}\"", 250.0 * 650.0 / 300.0)));
        // containerd's two parts are one sum.
        assert!(drawn.contains(">106.1</text>"));
        for (_, name, colour) in LEGEND {
            assert!(drawn.contains(&format!(">{name}</text>")) && drawn.contains(colour), "{name}");
        }
        assert!(drawn.contains(">milliseconds</text>") && drawn.contains("* prints nothing"));
        assert_eq!(drawn.matches("<text").count(), drawn.matches("</text>").count());
    }

    #[test]
    fn names_are_text() {
        let mut report = example();
        report.runtimes[0].name = "<script>\"&".into();
        let drawn = svg(&report);
        assert!(!drawn.contains("<script>") && drawn.contains("&lt;script&gt;&quot;&amp;"));
    }

    #[test]
    fn the_axis_has_round_marks() {
        assert_eq!(axis(250.0), (50.0, 250.0));
        assert_eq!(axis(251.0), (50.0, 300.0));
        assert_eq!(axis(0.75), (0.1, 0.8));
        assert_eq!(axis(8.0), (1.0, 8.0));
        assert_eq!(axis(0.0), (1.0, 1.0));
        assert_eq!(axis(f64::NAN), (1.0, 1.0));
    }

    #[test]
    fn the_legend_is_in_the_order_of_the_parts() {
        for (place, (who, ..)) in LEGEND.into_iter().enumerate() {
            assert_eq!(who as usize, place);
        }
    }
}
