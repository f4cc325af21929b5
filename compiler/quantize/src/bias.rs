//! Bias correction: rounded weights change a channel's mean; the bias takes the change back.
//!
//! (Nagel et al., "Data-Free Quantization through Weight Equalization and Bias Correction", 2019, section 4.2, with
//! means measured in calibration.)

use hawqc_ir::TypeError;

/// `bias[k] - sum (rounded - wei)[k, ky, kx, c] * taps[ky, kx, group(k) * C/groups + c]`.
///
/// `shape` is that of the weights, `[K, KH, KW, C/groups]`; `taps` is `[KH, KW, C]`, the mean of what each weight is
/// multiplied with.
pub(crate) fn corrected_bias(
    groups: usize,
    shape: &[usize],
    wei: &[f32],
    rounded: &[f32],
    taps: &[f32],
    bias: &[f32],
) -> Result<Vec<f32>, TypeError> {
    let &[k, kh, kw, group_channels] = shape else {
        return Err(TypeError::new("weights are not of rank 4"));
    };
    let channels = group_channels * groups;
    if taps.len() != kh * kw * channels {
        let message = format!("calibration has means of {} taps, the convolution {}", taps.len(), kh * kw * channels);
        return Err(TypeError::new(message));
    }
    let mut corrected: Vec<f64> = bias.iter().map(|&b| f64::from(b)).collect();
    for (i, (&w, &r)) in wei.iter().zip(rounded).enumerate() {
        let (channel, tap, out) = (i % group_channels, i / group_channels % (kh * kw), i / (group_channels * kh * kw));
        let first = out / (k / groups) * group_channels;
        corrected[out] -= f64::from(r - w) * f64::from(taps[tap * channels + first + channel]);
    }
    Ok(corrected.into_iter().map(|b| b as f32).collect())
}
