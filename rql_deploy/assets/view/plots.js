/* What is plotted over time: V, latencies, commands, verdicts. */

const LEFT = 52, RIGHT = 10, TOP = 8, BOTTOM = 20;
const timeAt = (x, width) => span[0] + (span[1] - span[0]) * (x - LEFT) / (width - LEFT - RIGHT);
const place = (t, width) => LEFT + (width - LEFT - RIGHT) * (t - span[0]) / (span[1] - span[0]);

function steps(low, high) {
  const raw = (high - low) / 4, base = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * base).find((s) => s >= raw);
  const found = [];
  for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-6; v += step) {
    found.push(Number(v.toPrecision(6)));
  }
  return found;
}

function plot(id, low, high, paint) {
  const {pen, width, height} = canvas(id);
  if (!(high > low)) [low, high] = [low - 0.5, low + 0.5];
  const y = (v) => TOP + (height - TOP - BOTTOM) * (high - v) / (high - low);
  pen.fillStyle = css("--soft");
  pen.textAlign = "right";
  for (const v of steps(low, high)) {
    stroke(pen, [[LEFT, y(v)], [width - RIGHT, y(v)]], css("--line"), 1);
    pen.fillText(num(v), LEFT - 6, y(v) + 4);
  }
  pen.textAlign = "center";
  for (const t of steps(span[0], span[1])) {
    pen.fillText(num(t) + " s", Math.min(place(t, width), width - 20), height - 5);
  }
  pen.textAlign = "left";
  pen.save();
  pen.beginPath();
  pen.rect(LEFT - 4, TOP - 4, width - LEFT - RIGHT + 8, height - TOP - BOTTOM + 8);
  pen.clip();
  paint(pen, (t) => place(t, width), y, width, height);
  pen.restore();
  const x = place(rows[state.row].t, width);
  stroke(pen, [[x, TOP], [x, height - BOTTOM]], css("--ink"), 1);
}

function drawValue() {
  const all = episode.decisions.flatMap((d) => d.candidates.map((c) => c.v)).filter((v) => v != null);
  const [low, high] = all.length ? [Math.min(...all), Math.max(...all)] : [0, 1];
  const pad = 0.05 * (high - low || 1);
  plot("value", low - pad, high + pad, (pen, x, y, width, height) => {
    if (!all.length) {
      pen.fillText("V was not computed: ask for it, or for candidates.", LEFT + 8, height / 2);
      return;
    }
    for (const d of episode.decisions) {
      for (const c of d.candidates) if (c.v != null) dot(pen, [x(d.t), y(c.v)], 2, shade(c.c));
    }
    stroke(pen, episode.decisions.filter((d) => d.v != null).map((d) => [x(d.t), y(d.v)]), css("--ink"), 1.5);
  });
}

function drawLatency() {
  const tops = episode.decisions.map((d) => 1e3 * Math.max(d.server, d.budget || 0)).sort((a, b) => a - b);
  const longest = 1e3 * Math.max(1e-4, ...episode.decisions.map((d) => d.server));
  // A budget far beyond what was needed would make the bars invisible.
  const high = Math.min(tops[tops.length - 1] || 1, 3 * longest) * 1.05;
  plot("latency", 0, high, (pen, x, y, width) => {
    const each = 0.6 * (width - LEFT - RIGHT) / Math.max(1, episode.decisions.length);
    const wide = Math.max(1, Math.min(8, each));
    episode.decisions.forEach((d) => {
      let from = 0;
      for (const [part, colour] of [[d.queue, "--c1"], [d.inference, "--c0"],
                                    [Math.max(0, d.server - d.queue - d.inference), "--c3"]]) {
        pen.fillStyle = css(colour);
        pen.fillRect(x(d.t) - wide / 2, y(1e3 * (from + part)), wide, y(1e3 * from) - y(1e3 * (from + part)));
        from += part;
      }
      if (d.budget != null && 1e3 * d.budget <= high) {
        const b = y(1e3 * d.budget);
        const colour = css(d.server > d.budget ? "--bad" : "--ink");
        stroke(pen, [[x(d.t) - wide, b], [x(d.t) + wide, b]], colour, 2);
      }
    });
  });
}

function drawCommands(decision) {
  const share = (v, k) => (v - data.low[k]) / (data.high[k] - data.low[k]);
  plot("commands", 0, 1, (pen, x, y) => {
    data.actions.forEach((_, k) => {
      const colour = css("--c" + (k % 4)), dash = k < 4 ? [] : [5, 3];
      if (episode.ticks.length) {
        stroke(pen, episode.ticks.map((r) => [x(r.t), y(share(r.a[k], k))]), colour, 1.2, 0.8, dash);
      } else {
        const first = episode.decisions.map((d) => [x(d.t), y(share(d.chunk[0][k], k))]);
        stroke(pen, first, colour, 1.2, 0.8, dash);
      }
      if (decision) {
        const row = rows[state.row];
        const begin = episode.ticks.length ? row.t - (row.i || 0) / data.rate : decision.t;
        const plan = decision.chunk.map((a, i) => [x(begin + i / data.rate), y(share(a[k], k))]);
        stroke(pen, plan, colour, 3, 0.5);
      }
    });
  });
}

function drawVerdicts() {
  const {pen, width, height} = canvas("verdicts");
  const wide = Math.max(1, (width - LEFT - RIGHT) / rows.length + 0.5);
  episode.ticks.forEach((r) => {
    const said = r.fresh === undefined ? "--c3" : !r.fresh ? "--bad" : r.kind ? "--c1" : "--c2";
    pen.fillStyle = css(r.human ? "--c0" : said);
    pen.fillRect(place(r.t, width) - wide / 2, 8, wide, 20);
    if (r.success) { pen.fillStyle = css("--ink"); pen.fillRect(place(r.t, width) - wide / 2, 30, wide, 3); }
  });
  const x = place(rows[state.row].t, width);
  stroke(pen, [[x, 2], [x, height - 4]], css("--ink"), 1.5);
}
