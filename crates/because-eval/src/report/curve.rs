use std::fmt::Write;

use super::LossPoint;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 34.0;
/// More points than pixels would only make the file larger.
const MOST_POINTS: usize = 600;

/// The loss curve as inline SVG, coloured by the page's style; `None` where fewer than two points can be drawn.
///
/// Long curves are thinned by the mean of equal runs of steps, so that what is drawn is the course and not a sample of
/// its noise.
pub(super) fn svg(train: &[LossPoint], valid: &[LossPoint]) -> Option<String> {
    let (train, valid) = (thinned(train), thinned(valid));
    let frame = Frame::around(train.iter().chain(&valid))?;
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"loss by step\" class=\"curve\">"
    );
    for loss in ticks(frame.low, frame.high) {
        let y = frame.y(loss);
        push(
            &mut svg,
            format_args!(
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>",
                WIDTH - RIGHT
            ),
        );
        push(
            &mut svg,
            format_args!(
                "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 8.0,
                y + 4.0,
                short(loss)
            ),
        );
    }
    for step in ticks(frame.first, frame.last)
        .into_iter()
        .filter(|step| step.fract() == 0.0)
    {
        push(
            &mut svg,
            format_args!(
                "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{step}</text>",
                frame.x(step),
                HEIGHT - BOTTOM + 18.0
            ),
        );
    }
    push(
        &mut svg,
        format_args!(
            "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">step</text>",
            WIDTH - RIGHT,
            HEIGHT - 2.0
        ),
    );
    for (class, points) in [("train", &train), ("valid", &valid)] {
        frame.line(&mut svg, class, points);
    }
    svg.push_str("</svg>");
    Some(svg)
}

fn push(svg: &mut String, part: std::fmt::Arguments<'_>) {
    svg.write_fmt(part)
        .expect("writing into a string does not fail");
}

/// A point as numbers to draw: the step, the loss.
type Dot = (f64, f64);

fn thinned(points: &[LossPoint]) -> Vec<Dot> {
    let drawn: Vec<Dot> = points
        .iter()
        .filter(|point| point.loss.is_finite())
        .map(|point| (point.step as f64, point.loss))
        .collect();
    let run = drawn.len().div_ceil(MOST_POINTS).max(1);
    drawn
        .chunks(run)
        .map(|run| {
            let n = run.len() as f64;
            let (steps, losses) = run
                .iter()
                .fold((0.0, 0.0), |(steps, losses), (step, loss)| {
                    (steps + step, losses + loss / n)
                });
            (steps / n, losses)
        })
        .collect()
}

/// What the axes span.
struct Frame {
    first: f64,
    last: f64,
    low: f64,
    high: f64,
}

impl Frame {
    fn around<'a>(dots: impl Iterator<Item = &'a Dot> + Clone) -> Option<Self> {
        if dots.clone().count() < 2 {
            return None;
        }
        let ends = |values: &mut dyn Iterator<Item = f64>| {
            values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
                (low.min(value), high.max(value))
            })
        };
        let (first, last) = ends(&mut dots.clone().map(|dot| dot.0));
        let (low, high) = ends(&mut dots.map(|dot| dot.1));
        let room = ((high - low) * 0.05).max(1e-3 * high.abs()).max(1e-9);
        (last > first && (high + room).is_finite() && (low - room).is_finite()).then(|| Self {
            first,
            last,
            low: if low >= 0.0 {
                (low - room).max(0.0)
            } else {
                low - room
            },
            high: high + room,
        })
    }

    fn x(&self, step: f64) -> f64 {
        LEFT + (step - self.first) / (self.last - self.first) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, loss: f64) -> f64 {
        TOP + (self.high - loss) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM)
    }

    fn line(&self, svg: &mut String, class: &str, dots: &[Dot]) {
        if dots.is_empty() {
            return;
        }
        push(svg, format_args!("<polyline class=\"{class}\" points=\""));
        for (at, &(step, loss)) in dots.iter().enumerate() {
            let space = if at == 0 { "" } else { " " };
            push(
                svg,
                format_args!("{space}{:.1},{:.1}", self.x(step), self.y(loss)),
            );
        }
        svg.push_str("\"/>");
    }
}

/// Round values inside the span, four to nine of them.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let rough = (high - low) / 4.0;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [5.0, 2.0, 1.0]
        .into_iter()
        .map(|n| n * power)
        .find(|step| *step <= rough)
        .unwrap_or(power);
    let from = (low / step).ceil();
    (0..16)
        .map(|n| (from + f64::from(n)) * step)
        .take_while(|value| *value <= high)
        .collect()
}

/// Three digits that matter, without a tail of zeros.
fn short(value: f64) -> String {
    let digits = (2 - value.abs().max(1e-9).log10().floor() as i32).clamp(0, 9) as usize;
    let text = format!("{value:.digits$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(losses: &[f64]) -> Vec<LossPoint> {
        losses
            .iter()
            .zip(1..)
            .map(|(&loss, step)| LossPoint { step, loss })
            .collect()
    }

    #[test]
    fn a_falling_loss_is_drawn_downwards() {
        let svg = svg(&points(&[4.0, 2.0, 1.0]), &[]).unwrap();
        let line = svg
            .split("class=\"train\" points=\"")
            .nth(1)
            .unwrap()
            .split('"')
            .next()
            .unwrap();
        let heights: Vec<f64> = line
            .split(' ')
            .map(|dot| dot.split(',').nth(1).unwrap().parse().unwrap())
            .collect();
        assert!(
            heights[0] < heights[1] && heights[1] < heights[2],
            "{heights:?}: y grows downwards"
        );
        assert!(!svg.contains("NaN") && !svg.contains("class=\"valid\""));
    }

    #[test]
    fn what_cannot_be_drawn_is_not() {
        assert_eq!(svg(&points(&[1.0]), &[]), None);
        assert_eq!(svg(&points(&[f64::NAN, f64::INFINITY, 1.0]), &[]), None);
        assert_eq!(
            svg(&[LossPoint { step: 1, loss: 1.0 }; 2], &[]),
            None,
            "no width"
        );
        assert!(
            svg(&points(&[1.0, 1.0]), &[]).is_some(),
            "a flat line has a place"
        );
        for extreme in [f64::MAX, 1e300, 1e-300] {
            let drawn = svg(&points(&[extreme, -extreme, 0.0]), &[]);
            assert!(
                drawn.is_none_or(|svg| !svg.contains("NaN") && !svg.contains("inf")),
                "{extreme}"
            );
        }
    }

    #[test]
    fn a_long_curve_is_thinned_to_its_course() {
        let long = thinned(&points(&vec![2.0; 10_000]));
        assert!(long.len() <= MOST_POINTS && long.iter().all(|dot| (dot.1 - 2.0).abs() < 1e-9));
    }

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(ticks(0.0, 4.2), [0.0, 1.0, 2.0, 3.0, 4.0]);
        assert_eq!(short(0.25), "0.25");
        assert_eq!(short(1500.0), "1500");
    }
}
