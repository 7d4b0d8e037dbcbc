// loss = -log sigmoid(beta * ((log p - reference) of the chosen answer - that of the rejected one))
@group(0) @binding(4) var<storage, read> reference: array<f32>; // [rows], log p of the answer by the reference

fn compare(pair: u32, chosen: Row, rejected: Row) -> Compared {
    let log_p = -vec2<f32>(chosen.loss, rejected.loss);
    let rewards = params.beta * (log_p - vec2<f32>(reference[2u * pair], reference[2u * pair + 1u]));
    let margin = rewards.x - rewards.y;
    let ratio = log_sigmoid(margin);
    let rate = scale[0] * params.beta * sigmoid(-margin);
    return Compared(
        -ratio,
        margin,
        ratio,
        select(0.0, 1.0, margin > 0.0),
        rewards,
        log_p,
        vec2<f32>(0.0, rate),
        vec2<f32>(0.0, -rate),
    );
}
