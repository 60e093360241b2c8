"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const ms = (s) => (s == null ? "-" : (1e3 * s).toFixed(1) + " ms");
const at_time = (t) => t.toFixed(2) + " s";
const num = (v) => (v == null ? "-" : Number(v.toPrecision(4)).toString());
const state = {episode: 0, row: 0, playing: false, yaw: -0.9, pitch: 0.5, zoom: 1, film: false};
let episode, rows, span, box, worst;

function css(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function shade(c) {
  return c < 0 ? css("--c3") : data.colours[c];
}

/* Which decision a row shows: that behind its command, or the newest before it. */
function decisionOf(i) {
  if (!episode.ticks.length) return i;
  for (let j = i; j >= 0; j--) if (rows[j].d >= 0) return rows[j].d;
  return -1;
}

function open(index) {
  state.episode = index;
  episode = data.episodes[index];
  rows = episode.ticks.length ? episode.ticks : episode.decisions;
  const times = [...episode.ticks, ...episode.decisions].map((r) => r.t);
  const low = Math.min(...rows.map((r) => r.t)), high = Math.max(...rows.map((r) => r.t));
  span = [low, Math.max(high, low + 1e-3)];
  box = bounds();
  worst = moments();
  at("slider").max = rows.length - 1;
  for (const [name, found] of Object.entries(worst)) {
    const button = at("to-" + name);
    button.disabled = !found.length;
    button.dataset.next = 0;
    button.textContent = button.dataset.label + (!found.length ? ": none" : name === "miss" ? ` (${found.length})` : "");
  }
  at("switch").style.display = rows.some((r) => r.film) ? "block" : "none";
  go(0);
}

/* Rows to look at first, the worst first. */
function moments() {
  const ranked = (list, key, sign) => list.filter((i) => key(i) != null)
    .sort((a, b) => sign * (key(a) - key(b))).slice(0, 20);
  const all = rows.map((_, i) => i);
  const isTick = episode.ticks.length > 0;
  const first = new Map();
  all.forEach((i) => { const d = decisionOf(i); if (d >= 0 && !first.has(d)) first.set(d, i); });
  const shown = [...first.values()];
  const v = (i) => episode.decisions[decisionOf(i)].v;
  const late = (i) => { const d = episode.decisions[decisionOf(i)]; return d.budget != null && d.server > d.budget; };
  const held = isTick ? all.filter((i) => rows[i].fresh === false) : [];
  return {
    seam: isTick ? ranked(all, (i) => rows[i].seam > 0 ? rows[i].seam : null, -1) : [],
    value: ranked(shown, v, 1),
    miss: [...new Set([...held, ...shown.filter(late)])].sort((a, b) => a - b),
  };
}

function jump(name) {
  const button = at("to-" + name), found = worst[name];
  go(found[button.dataset.next % found.length]);
  button.dataset.next = (Number(button.dataset.next) + 1) % found.length;
}

function go(i) {
  state.row = Math.max(0, Math.min(rows.length - 1, Math.round(i)));
  at("slider").value = state.row;
  draw();
}

/* The scene. */

function points() {
  const found = [];
  episode.ticks.forEach((r) => r.p && found.push(r.p));
  episode.decisions.forEach((d) => d.candidates.forEach((c) => c.x && found.push(...c.x)));
  return found;
}

function bounds() {
  const found = points();
  if (!found.length) return null;
  const low = [0, 1, 2].map((k) => found.reduce((m, p) => Math.min(m, p[k]), Infinity));
  const high = [0, 1, 2].map((k) => found.reduce((m, p) => Math.max(m, p[k]), -Infinity));
  const middle = low.map((l, k) => (l + high[k]) / 2);
  const size = Math.max(0.02, Math.hypot(...low.map((l, k) => high[k] - l)));
  return {low, high, middle, size};
}

function projector(width, height) {
  const scale = 0.72 * state.zoom * Math.min(width, height) / box.size;
  const [cy, sy, cp, sp] = [Math.cos(state.yaw), Math.sin(state.yaw), Math.cos(state.pitch), Math.sin(state.pitch)];
  return (p) => {
    const [x, y, z] = p.map((v, k) => v - box.middle[k]);
    return [width / 2 + scale * (cy * x + sy * y), height / 2 - scale * (cp * z + sp * (cy * y - sy * x))];
  };
}

function canvas(id) {
  const element = at(id), ratio = window.devicePixelRatio || 1;
  const width = element.clientWidth, height = element.clientHeight;
  if (element.width !== Math.round(width * ratio) || element.height !== Math.round(height * ratio)) {
    element.width = Math.round(width * ratio);
    element.height = Math.round(height * ratio);
  }
  const pen = element.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.font = "12px system-ui,sans-serif";
  return {pen, width, height};
}

function stroke(pen, path, colour, width, alpha = 1, dash = []) {
  if (path.length < 2) return;
  pen.save();
  pen.globalAlpha = alpha;
  pen.strokeStyle = colour;
  pen.lineWidth = width;
  pen.lineJoin = pen.lineCap = "round";
  pen.setLineDash(dash);
  pen.beginPath();
  path.forEach(([x, y], i) => (i ? pen.lineTo(x, y) : pen.moveTo(x, y)));
  pen.stroke();
  pen.restore();
}

function dot(pen, [x, y], radius, colour, ring) {
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  pen.fillStyle = colour;
  pen.fill();
  if (ring) { pen.strokeStyle = ring; pen.lineWidth = 1.5; pen.stroke(); }
}

function axes([x, y, z, w]) {
  return [
    [1 - 2 * (y * y + z * z), 2 * (x * y + z * w), 2 * (x * z - y * w)],
    [2 * (x * y - z * w), 1 - 2 * (x * x + z * z), 2 * (y * z + x * w)],
    [2 * (x * z + y * w), 2 * (y * z - x * w), 1 - 2 * (x * x + y * y)],
  ];
}

function drawScene(decision) {
  const {pen, width, height} = canvas("scene");
  if (!box) {
    pen.fillStyle = css("--soft");
    pen.fillText("This plant's actions do not move an end effector along x, y and z: see its commands below.", 12, 24);
    return;
  }
  const to = projector(width, height), z = box.low[2];
  for (let k = 0; k <= 6; k++) {
    const x = box.middle[0] + (k / 6 - 0.5) * box.size, y = box.middle[1] + (k / 6 - 0.5) * box.size;
    const half = box.size / 2;
    stroke(pen, [[x, box.middle[1] - half, z], [x, box.middle[1] + half, z]].map(to), css("--line"), 1);
    stroke(pen, [[box.middle[0] - half, y, z], [box.middle[0] + half, y, z]].map(to), css("--line"), 1);
  }
  const corner = [box.middle[0] - box.size / 2, box.middle[1] + box.size / 2, z];
  ["x", "y", "z"].forEach((name, k) => {
    const end = corner.map((v, j) => v + (j === k ? (j === 1 ? -1 : 1) * box.size / 6 : 0));
    stroke(pen, [corner, end].map(to), css("--soft"), 1.5);
    pen.fillStyle = css("--soft");
    pen.fillText(name, ...to(end));
  });
  const trail = episode.ticks.map((r) => r.p);
  if (trail.length && trail[0]) {
    stroke(pen, trail.map(to), css("--ink"), 1, 0.15);
    stroke(pen, trail.slice(0, state.row + 1).map(to), css("--ink"), 1.5, 0.6);
  }
  if (decision) {
    decision.previews.forEach((p) => p.x && stroke(pen, p.x.map(to), shade(p.c), 1, 0.15 + 0.4 * p.k / data.steps));
    decision.candidates.forEach((c) => {
      if (!c.x) return;
      const sent = c.n === decision.sent;
      stroke(pen, c.x.map(to), shade(c.c), sent ? 4 : 1.5, sent ? 1 : 0.8);
      if (sent) c.x.slice(1).forEach((p) => dot(pen, to(p), 3, shade(c.c)));
    });
  }
  const row = rows[state.row], p = row.p || (decision && decision.p);
  if (!p) return;
  stroke(pen, [p, [p[0], p[1], z]].map(to), css("--soft"), 1, 0.8, [3, 4]);
  if (row.q) {
    axes(row.q).forEach((a, k) => {
      const end = p.map((v, j) => v + a[j] * box.size / 12);
      stroke(pen, [p, end].map(to), ["#dc2626", "#16a34a", "#2563eb"][k], 2);
    });
  }
  dot(pen, to(p), 5, css("--ink"), css("--paper"));
}

/* Plots over time. */

const LEFT = 52, RIGHT = 10, TOP = 8, BOTTOM = 20;
const timeAt = (x, width) => span[0] + (span[1] - span[0]) * (x - LEFT) / (width - LEFT - RIGHT);
const place = (t, width) => LEFT + (width - LEFT - RIGHT) * (t - span[0]) / (span[1] - span[0]);

function steps(low, high) {
  const raw = (high - low) / 4, base = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * base).find((s) => s >= raw);
  const found = [];
  for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-6; v += step) found.push(Number(v.toPrecision(6)));
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
  for (const t of steps(span[0], span[1])) pen.fillText(num(t) + " s", Math.min(place(t, width), width - 20), height - 5);
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
    if (!all.length) { pen.fillText("V was not computed: ask for it, or for candidates.", LEFT + 8, height / 2); return; }
    episode.decisions.forEach((d) => d.candidates.forEach((c) => c.v != null && dot(pen, [x(d.t), y(c.v)], 2, shade(c.c))));
    stroke(pen, episode.decisions.filter((d) => d.v != null).map((d) => [x(d.t), y(d.v)]), css("--ink"), 1.5);
  });
}

function drawLatency() {
  const tops = episode.decisions.map((d) => 1e3 * Math.max(d.server, d.budget || 0)).sort((a, b) => a - b);
  const longest = 1e3 * Math.max(1e-4, ...episode.decisions.map((d) => d.server));
  // A budget far beyond what was needed would make the bars invisible.
  const high = Math.min(tops[tops.length - 1] || 1, 3 * longest) * 1.05;
  plot("latency", 0, high, (pen, x, y, width) => {
    const wide = Math.max(1, Math.min(8, 0.6 * (width - LEFT - RIGHT) / Math.max(1, episode.decisions.length)));
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
        stroke(pen, [[x(d.t) - wide, b], [x(d.t) + wide, b]], css(d.server > d.budget ? "--bad" : "--ink"), 2);
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
        stroke(pen, episode.decisions.map((d) => [x(d.t), y(share(d.chunk[0][k], k))]), colour, 1.2, 0.8, dash);
      }
      if (decision) {
        const begin = episode.ticks.length ? rows[state.row].t - (rows[state.row].i || 0) / data.rate : decision.t;
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
    pen.fillStyle = css(r.human ? "--c0" : r.fresh === false ? "--bad" : r.kind ? "--c1" : r.fresh ? "--c2" : "--c3");
    pen.fillRect(place(r.t, width) - wide / 2, 8, wide, 20);
    if (r.success) { pen.fillStyle = css("--ink"); pen.fillRect(place(r.t, width) - wide / 2, 30, wide, 3); }
  });
  const x = place(rows[state.row].t, width);
  stroke(pen, [[x, 2], [x, height - 4]], css("--ink"), 1.5);
}

function facts(decision) {
  const row = rows[state.row], found = [];
  const tick = episode.ticks.length > 0;
  found.push(["time", at_time(row.t) + (tick ? `, tick ${state.row} of ${rows.length}` : "")]);
  if (tick) {
    const said = row.human ? "a human's action" : row.fresh === undefined ? "not reported" : row.fresh ? "the policy's action" : "hold";
    found.push(["command", said + (row.reason ? `: ${row.reason}` : "")]);
    if (row.late !== undefined) found.push(["tick late by", ms(row.late) + (row.skipped ? `, ${row.skipped} skipped` : "")]);
    if (row.age !== undefined) found.push(["observation's age", ms(row.age)]);
    found.push(["seam", row.seam > 0 ? (100 * row.seam).toFixed(1) + " % of the range" : "none"]);
    if (row.reward !== undefined) found.push(["reward", num(row.reward) + (row.success ? ", success" : "")]);
  }
  if (decision) {
    const number = episode.decisions.indexOf(decision);
    found.push(["decision", `${number} of ${episode.decisions.length}` + (row.i >= 0 ? `, its action ${row.i}` : "")]);
    found.push(["V", num(decision.v) + (decision.spread != null ? ` ± ${num(decision.spread)}` : "")]);
    found.push(["candidates", `${decision.asked}, V chose among ${decision.compared}`
      + decision.pruned.map(([k, n]) => `; ${n} after step ${k}`).join("")]);
    found.push(["refinement steps", String(decision.k)]);
    found.push(["queue, inference", `${ms(decision.queue)}, ${ms(decision.inference)}`]);
    found.push(["server, of budget", `${ms(decision.server)} of ${ms(decision.budget)}`]);
    found.push(["seed", decision.seed]);
  }
  const table = at("facts");
  table.replaceChildren(...found.map(([name, value]) => {
    const line = document.createElement("tr"), th = document.createElement("th"), td = document.createElement("td");
    th.textContent = name;
    td.textContent = value;
    line.append(th, td);
    return line;
  }));
}

function draw() {
  const decision = episode.decisions[decisionOf(state.row)];
  const row = rows[state.row], film = state.film && row.film;
  at("film").style.display = film ? "block" : "none";
  at("scene").style.display = film ? "none" : "block";
  if (film) at("film").src = row.film; else drawScene(decision);
  at("time").textContent = at_time(row.t);
  drawVerdicts();
  drawValue();
  drawLatency();
  drawCommands(decision);
  facts(decision);
}

/* Hands. */

function follow(id) {
  const element = at(id);
  const seek = (event) => {
    const t = timeAt(event.offsetX, element.clientWidth);
    let best = 0;
    rows.forEach((r, i) => { if (Math.abs(r.t - t) < Math.abs(rows[best].t - t)) best = i; });
    go(best);
  };
  element.addEventListener("pointerdown", (event) => { element.setPointerCapture(event.pointerId); seek(event); });
  element.addEventListener("pointermove", (event) => event.buttons && seek(event));
}

function play(on) {
  state.playing = on;
  at("play").textContent = on ? "Pause" : "Play";
  if (!on) return;
  if (state.row >= rows.length - 1) go(0);
  const begun = performance.now(), from = rows[state.row].t;
  const step = (now) => {
    if (!state.playing) return;
    const t = from + (now - begun) / 1e3;
    let i = state.row;
    while (i < rows.length - 1 && rows[i + 1].t <= t) i++;
    if (i !== state.row) go(i);
    if (i >= rows.length - 1) play(false); else requestAnimationFrame(step);
  };
  requestAnimationFrame(step);
}

data.episodes.forEach((e, i) => at("episode").add(new Option(e.name, i)));
at("episode").addEventListener("change", (event) => { play(false); open(Number(event.target.value)); });
at("slider").addEventListener("input", (event) => { play(false); go(Number(event.target.value)); });
at("play").addEventListener("click", () => play(!state.playing));
at("switch").addEventListener("click", () => { state.film = !state.film; draw(); });
["seam", "value", "miss"].forEach((name) => at("to-" + name).addEventListener("click", () => { play(false); jump(name); }));
["value", "latency", "commands", "verdicts"].forEach(follow);
at("scene").addEventListener("pointerdown", (event) => event.target.setPointerCapture(event.pointerId));
at("scene").addEventListener("pointermove", (event) => {
  if (!event.buttons) return;
  state.yaw += event.movementX * 0.01;
  state.pitch = Math.max(-0.2, Math.min(1.57, state.pitch + event.movementY * 0.01));
  draw();
});
at("scene").addEventListener("wheel", (event) => {
  event.preventDefault();
  state.zoom = Math.max(0.3, Math.min(12, state.zoom * Math.exp(-event.deltaY * 1e-3)));
  draw();
}, {passive: false});
document.addEventListener("keydown", (event) => {
  if (event.target.tagName === "SELECT" || event.target.tagName === "INPUT") return;
  if (event.key === "ArrowRight") go(state.row + 1);
  if (event.key === "ArrowLeft") go(state.row - 1);
});
window.addEventListener("resize", draw);
at("scale").style.background = `linear-gradient(90deg,${data.colours.join(",")})`;
at("names").replaceChildren(...data.actions.map((name, k) => {
  const key = document.createElement("span");
  key.className = `key k${k % 4}`;
  key.textContent = name + " ";
  return key;
}));
open(0);
const hash = /^#(\w+)$/.exec(location.hash);
if (hash && worst[hash[1]] && worst[hash[1]].length) jump(hash[1]);
