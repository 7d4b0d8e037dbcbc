// With q the mean log p of an answer's tokens and odds(q) = q - log(1 - exp(q)):
// loss = -beta * log sigmoid(odds of the chosen answer - odds of the rejected one), beside -log p of all tokens of the chosen row
fn compare(pair: u32, chosen: Row, rejected: Row) -> Compared {
    let tokens = max(vec2<f32>(chosen.tokens, rejected.tokens), vec2<f32>(1.0));
    let q = -vec2<f32>(chosen.loss, rejected.loss) / tokens;
    // An answer that is certain has no odds: its rate is bounded.
    let other = max(vec2<f32>(1.0) - exp(q), vec2<f32>(1e-7));
    let odds = q - log(other);
    let margin = odds.x - odds.y;
    let ratio = log_sigmoid(margin);
    let rate = scale[0] * params.beta * sigmoid(-margin) / (other * tokens);
    return Compared(
        -params.beta * ratio,
        margin,
        ratio,
        select(0.0, 1.0, q.x > q.y),
        params.beta * q,
        q,
        vec2<f32>(scale[1], rate.x),
        vec2<f32>(0.0, -rate.y),
    );
}
