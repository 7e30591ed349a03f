use candle_core::{Device, Tensor};
use ofa_supernet::network::Mode;
use ofa_supernet::seed::{Purpose, generator};
use ofa_supernet::{SearchSpace, Supernet};
fn main() {
    let arg: Vec<String> = std::env::args().collect();
    let mut space = SearchSpace::named(&arg[1]).unwrap();
    if arg[1].starts_with("mbv3") {
        space.stem.stride = 1;
        space.stages[0].stride = 1;
        space.resolutions = vec![32];
    }
    let net = Supernet::new(&space, 10, 1).unwrap();
    let n: usize = net.parameters().iter().map(|p| p.var.elem_count()).sum();
    println!("{n} parameters");
    let x = Tensor::randn(0f32, 1f32, (64, 32, 32, 3), &Device::Cpu).unwrap();
    let mut rng = generator(1, Purpose::Dropout, &[]);
    for i in 0..5 {
        let t = std::time::Instant::now();
        let y = net.forward(&x, &space.largest(), Mode::Train { dropout: 0.0, rng: &mut rng }).unwrap();
        let f = t.elapsed().as_secs_f64();
        let g = y.sqr().unwrap().mean_all().unwrap().backward().unwrap();
        let b = t.elapsed().as_secs_f64() - f;
        drop(g);
        let t = std::time::Instant::now();
        net.forward(&x, &space.largest(), Mode::BatchStatistics).unwrap();
        println!(
            "{i}: fwd {:.1} bwd {:.1} ms -> {:.1} img/s; teacher {:.1} ms",
            f * 1e3,
            b * 1e3,
            64.0 / (f + b),
            t.elapsed().as_secs_f64() * 1e3
        );
    }
}
