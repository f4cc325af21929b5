//! ResNet (He et al., 2016) as torchvision builds it.

use super::ZooError;
use super::net::{Net, Tensor, Window};

const EPSILON: f32 = 1e-5;

/// Gamma of the last batch normalisation of a residual branch: below one, so that the sum grows slowly over a stage.
const BRANCH_SCALE: f64 = 0.5;

/// Which convolution of a bottleneck carries the stride of its stage.
#[derive(Clone, Copy, PartialEq)]
pub enum StrideOn {
    /// The first 1x1.
    Conv1,
    /// The 3x3.
    Conv2,
}

/// ResNet-18 and -34: `widths[i]` channels and `blocks[i]` basic blocks in stage `i`.
pub fn basic(net: &mut Net, widths: &[usize], blocks: &[usize]) -> Result<Tensor, ZooError> {
    let mut x = stem(net, widths[0])?;
    for (stage, (&width, &count)) in widths.iter().zip(blocks).enumerate() {
        let channels = net.scaled(width);
        for unit in 0..count {
            let stride = if stage > 0 && unit == 0 { 2 } else { 1 };
            x = basic_block(net, &format!("layer{}.{unit}", stage + 1), &x, channels, stride)?;
        }
    }
    Ok(head(net, &x))
}

/// ResNet-50 and deeper: stages of 64, 128, 256, 512 channels with expansion 4. With more than one group, ResNeXt: groups of
/// 4, 8, 16, 32 channels (Xie et al., 2017).
pub fn bottleneck(net: &mut Net, blocks: &[usize], stride_on: StrideOn, groups: usize) -> Result<Tensor, ZooError> {
    let mut x = stem(net, 64)?;
    for (stage, &count) in blocks.iter().enumerate() {
        let channels = net.scaled(64 << stage);
        for unit in 0..count {
            let stride = if stage > 0 && unit == 0 { 2 } else { 1 };
            let strides = if stride_on == StrideOn::Conv1 { [stride, 1] } else { [1, stride] };
            let middle = if groups == 1 { channels } else { groups * net.scaled(4 << stage) };
            x = bottleneck_block(net, &format!("layer{}.{unit}", stage + 1), &x, (channels, middle), groups, strides)?;
        }
    }
    Ok(head(net, &x))
}

/// A residual network for small images: 3x3 stem without pooling, three stages of one basic block.
pub fn tiny(net: &mut Net) -> Result<Tensor, ZooError> {
    let image = net.image();
    let channels = net.scaled(16);
    let mut x = net.conv("conv1", &image, channels, Window::square(3, 1, 1), 1, false)?;
    x = net.batch_norm("bn1", &x, EPSILON, 1.0);
    x = net.relu("relu", &x);
    for stage in 0..3 {
        let channels = net.scaled(16 << stage);
        x = basic_block(net, &format!("layer{}.0", stage + 1), &x, channels, if stage > 0 { 2 } else { 1 })?;
    }
    Ok(head(net, &x))
}

fn stem(net: &mut Net, width: usize) -> Result<Tensor, ZooError> {
    let image = net.image();
    let channels = net.scaled(width);
    let mut x = net.conv("conv1", &image, channels, Window::square(7, 2, 3), 1, false)?;
    x = net.batch_norm("bn1", &x, EPSILON, 1.0);
    x = net.relu("relu", &x);
    net.max_pool("maxpool", &x, Window::square(3, 2, 1))
}

fn head(net: &mut Net, x: &Tensor) -> Tensor {
    let pooled = net.global_avg_pool("avgpool", x);
    let flat = net.flatten("flatten", &pooled);
    let classes = net.classes();
    net.gemm("fc", &flat, classes)
}

fn basic_block(net: &mut Net, name: &str, x: &Tensor, channels: usize, stride: usize) -> Result<Tensor, ZooError> {
    let at = |part: &str| format!("{name}.{part}");
    let mut y = net.conv(&at("conv1"), x, channels, Window::square(3, stride, 1), 1, false)?;
    y = net.batch_norm(&at("bn1"), &y, EPSILON, 1.0);
    y = net.relu(&at("relu1"), &y);
    y = net.conv(&at("conv2"), &y, channels, Window::square(3, 1, 1), 1, false)?;
    y = net.batch_norm(&at("bn2"), &y, EPSILON, BRANCH_SCALE);
    let identity = shortcut(net, name, x, channels, stride)?;
    let sum = net.add(&at("add"), &y, &identity);
    Ok(net.relu(&at("relu2"), &sum))
}

fn bottleneck_block(
    net: &mut Net,
    name: &str,
    x: &Tensor,
    (channels, middle): (usize, usize),
    groups: usize,
    strides: [usize; 2],
) -> Result<Tensor, ZooError> {
    let at = |part: &str| format!("{name}.{part}");
    let [first, second] = strides;
    let mut y = net.conv(&at("conv1"), x, middle, Window::square(1, first, 0), 1, false)?;
    y = net.batch_norm(&at("bn1"), &y, EPSILON, 1.0);
    y = net.relu(&at("relu1"), &y);
    y = net.conv(&at("conv2"), &y, middle, Window::square(3, second, 1), groups, false)?;
    y = net.batch_norm(&at("bn2"), &y, EPSILON, 1.0);
    y = net.relu(&at("relu2"), &y);
    y = net.conv(&at("conv3"), &y, 4 * channels, Window::square(1, 1, 0), 1, false)?;
    y = net.batch_norm(&at("bn3"), &y, EPSILON, BRANCH_SCALE);
    let identity = shortcut(net, name, x, 4 * channels, first * second)?;
    let sum = net.add(&at("add"), &y, &identity);
    Ok(net.relu(&at("relu3"), &sum))
}

/// The identity, or a strided 1x1 convolution where the shape changes.
fn shortcut(net: &mut Net, name: &str, x: &Tensor, channels: usize, stride: usize) -> Result<Tensor, ZooError> {
    if stride == 1 && x.channels == channels {
        return Ok(x.clone());
    }
    let y = net.conv(&format!("{name}.downsample.0"), x, channels, Window::square(1, stride, 0), 1, false)?;
    Ok(net.batch_norm(&format!("{name}.downsample.1"), &y, EPSILON, 1.0))
}
