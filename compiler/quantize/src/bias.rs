//! Bias correction: rounded weights change a channel's mean; the bias takes the change back.
//!
//! (Nagel et al., "Data-Free Quantization through Weight Equalization and Bias Correction", 2019, section 4.2, with
//! means measured in calibration.)

use hawqc_ir::{Conv, TensorType, TypeError};

/// `bias[k] - E[sum (rounded - wei)[k] * x]`, x having the given channel means.
///
/// `shapes` are those of the source and the weights. A tap counts with the share of output positions
/// at which it lies in the image; elsewhere it reads zero.
pub(crate) fn corrected_bias(
    conv: &Conv,
    shapes: (&TensorType, &TensorType),
    wei: &[f32],
    rounded: &[f32],
    means: &[f32],
    bias: &[f32],
) -> Result<Vec<f32>, TypeError> {
    let [_, h, w, c] = shapes.0.nhwc()?;
    let [k, kh, kw, group_channels] = shapes.1.nhwc()?;
    if means.len() != c {
        return Err(TypeError::new(format!("calibration has {} channel means for {c} channels", means.len())));
    }
    let window = conv.window([kh, kw]);
    let size = window.output_size([h, w])?;
    let share = |axis: usize, tap: usize, len: usize| {
        let inside = (0..size[axis]).filter(|&o| window.source(axis, o, tap, len).is_some()).count();
        inside as f64 / size[axis] as f64
    };
    let rows: Vec<f64> = (0..kh).map(|t| share(0, t, h)).collect();
    let columns: Vec<f64> = (0..kw).map(|t| share(1, t, w)).collect();
    let mut corrected: Vec<f64> = bias.iter().map(|&b| f64::from(b)).collect();
    for (i, (&w, &r)) in wei.iter().zip(rounded).enumerate() {
        let (channel, tap) = (i % group_channels, i / group_channels);
        let (x, y, out) = (tap % kw, tap / kw % kh, tap / (kw * kh));
        let first = out / (k / conv.groups) * group_channels;
        corrected[out] -= f64::from(r - w) * f64::from(means[first + channel]) * rows[y] * columns[x];
    }
    Ok(corrected.into_iter().map(|b| b as f32).collect())
}
