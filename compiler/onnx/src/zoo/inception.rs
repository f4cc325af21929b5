//! InceptionV3 (Szegedy et al., 2016): torchvision's inference graph, without the auxiliary classifier.
//!
//! Branches are written in the order of the modules' forward functions, which is also the order of their concatenation.

use super::ZooError;
use super::net::{Net, Tensor, Window};

type Built = Result<Tensor, ZooError>;

/// Stem, blocks Mixed_5b to Mixed_7c, global pooling and classifier.
pub fn inception_v3(net: &mut Net) -> Built {
    let image = net.image();
    let mut x = conv(net, "Conv2d_1a_3x3", &image, 32, Window::square(3, 2, 0))?;
    x = conv(net, "Conv2d_2a_3x3", &x, 32, Window::square(3, 1, 0))?;
    x = conv(net, "Conv2d_2b_3x3", &x, 64, Window::same(3, 3))?;
    x = net.max_pool("maxpool1", &x, Window::square(3, 2, 0))?;
    x = conv(net, "Conv2d_3b_1x1", &x, 80, Window::same(1, 1))?;
    x = conv(net, "Conv2d_4a_3x3", &x, 192, Window::square(3, 1, 0))?;
    x = net.max_pool("maxpool2", &x, Window::square(3, 2, 0))?;
    for (name, pool) in [("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)] {
        x = block_a(net, name, &x, pool)?;
    }
    x = block_b(net, "Mixed_6a", &x)?;
    for (name, width) in [("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)] {
        x = block_c(net, name, &x, width)?;
    }
    x = block_d(net, "Mixed_7a", &x)?;
    for name in ["Mixed_7b", "Mixed_7c"] {
        x = block_e(net, name, &x)?;
    }
    let pooled = net.global_avg_pool("avgpool", &x);
    let flat = net.flatten("flatten", &pooled);
    let classes = net.classes();
    Ok(net.gemm("fc", &flat, classes))
}

/// Convolution without bias, batch normalisation with epsilon 0.001, ReLU. `width` is the published channel count.
fn conv(net: &mut Net, name: &str, x: &Tensor, width: usize, window: Window) -> Built {
    let channels = net.scaled(width);
    let y = net.conv(&format!("{name}.conv"), x, channels, window, 1, false)?;
    let y = net.batch_norm(&format!("{name}.bn"), &y, 0.001, 1.0);
    Ok(net.relu(&format!("{name}.relu"), &y))
}

/// A chain of convolutions, each given by the name of its module, its published width and its window.
fn chain(net: &mut Net, block: &str, x: &Tensor, layers: &[(&str, usize, Window)]) -> Built {
    let mut y = x.clone();
    for &(name, width, window) in layers {
        y = conv(net, &format!("{block}.{name}"), &y, width, window)?;
    }
    Ok(y)
}

/// 3x3 average pooling that counts its padding, then a 1x1 convolution.
fn pool_branch(net: &mut Net, block: &str, x: &Tensor, width: usize) -> Built {
    let pooled = net.avg_pool(&format!("{block}.avg_pool"), x, Window::same(3, 3))?;
    conv(net, &format!("{block}.branch_pool"), &pooled, width, Window::same(1, 1))
}

fn block_a(net: &mut Net, name: &str, x: &Tensor, pool: usize) -> Built {
    let one = chain(net, name, x, &[("branch1x1", 64, Window::same(1, 1))])?;
    let five =
        chain(net, name, x, &[("branch5x5_1", 48, Window::same(1, 1)), ("branch5x5_2", 64, Window::same(5, 5))])?;
    let double = chain(
        net,
        name,
        x,
        &[
            ("branch3x3dbl_1", 64, Window::same(1, 1)),
            ("branch3x3dbl_2", 96, Window::same(3, 3)),
            ("branch3x3dbl_3", 96, Window::same(3, 3)),
        ],
    )?;
    let pooled = pool_branch(net, name, x, pool)?;
    Ok(net.concat(&format!("{name}.concat"), &[&one, &five, &double, &pooled]))
}

fn block_b(net: &mut Net, name: &str, x: &Tensor) -> Built {
    let three = chain(net, name, x, &[("branch3x3", 384, Window::square(3, 2, 0))])?;
    let double = chain(
        net,
        name,
        x,
        &[
            ("branch3x3dbl_1", 64, Window::same(1, 1)),
            ("branch3x3dbl_2", 96, Window::same(3, 3)),
            ("branch3x3dbl_3", 96, Window::square(3, 2, 0)),
        ],
    )?;
    let pooled = net.max_pool(&format!("{name}.max_pool"), x, Window::square(3, 2, 0))?;
    Ok(net.concat(&format!("{name}.concat"), &[&three, &double, &pooled]))
}

fn block_c(net: &mut Net, name: &str, x: &Tensor, width: usize) -> Built {
    let (row, column) = (Window::same(1, 7), Window::same(7, 1));
    let one = chain(net, name, x, &[("branch1x1", 192, Window::same(1, 1))])?;
    let seven = chain(
        net,
        name,
        x,
        &[("branch7x7_1", width, Window::same(1, 1)), ("branch7x7_2", width, row), ("branch7x7_3", 192, column)],
    )?;
    let double = chain(
        net,
        name,
        x,
        &[
            ("branch7x7dbl_1", width, Window::same(1, 1)),
            ("branch7x7dbl_2", width, column),
            ("branch7x7dbl_3", width, row),
            ("branch7x7dbl_4", width, column),
            ("branch7x7dbl_5", 192, row),
        ],
    )?;
    let pooled = pool_branch(net, name, x, 192)?;
    Ok(net.concat(&format!("{name}.concat"), &[&one, &seven, &double, &pooled]))
}

fn block_d(net: &mut Net, name: &str, x: &Tensor) -> Built {
    let three = chain(
        net,
        name,
        x,
        &[("branch3x3_1", 192, Window::same(1, 1)), ("branch3x3_2", 320, Window::square(3, 2, 0))],
    )?;
    let seven = chain(
        net,
        name,
        x,
        &[
            ("branch7x7x3_1", 192, Window::same(1, 1)),
            ("branch7x7x3_2", 192, Window::same(1, 7)),
            ("branch7x7x3_3", 192, Window::same(7, 1)),
            ("branch7x7x3_4", 192, Window::square(3, 2, 0)),
        ],
    )?;
    let pooled = net.max_pool(&format!("{name}.max_pool"), x, Window::square(3, 2, 0))?;
    Ok(net.concat(&format!("{name}.concat"), &[&three, &seven, &pooled]))
}

fn block_e(net: &mut Net, name: &str, x: &Tensor) -> Built {
    let one = chain(net, name, x, &[("branch1x1", 320, Window::same(1, 1))])?;
    let three = chain(net, name, x, &[("branch3x3_1", 384, Window::same(1, 1))])?;
    let three = split(net, name, "branch3x3_2", &three)?;
    let double = chain(
        net,
        name,
        x,
        &[("branch3x3dbl_1", 448, Window::same(1, 1)), ("branch3x3dbl_2", 384, Window::same(3, 3))],
    )?;
    let double = split(net, name, "branch3x3dbl_3", &double)?;
    let pooled = pool_branch(net, name, x, 192)?;
    Ok(net.concat(&format!("{name}.concat"), &[&one, &three, &double, &pooled]))
}

/// A 1x3 and a 3x1 convolution side by side, concatenated.
fn split(net: &mut Net, block: &str, name: &str, x: &Tensor) -> Built {
    let row = conv(net, &format!("{block}.{name}a"), x, 384, Window::same(1, 3))?;
    let column = conv(net, &format!("{block}.{name}b"), x, 384, Window::same(3, 1))?;
    Ok(net.concat(&format!("{block}.{name}.concat"), &[&row, &column]))
}
