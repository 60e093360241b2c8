/* What the page is told, which moment it shows, what its reader does. Comes after scene.js and plots.js. */
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
    const count = name === "miss" ? ` (${found.length})` : "";
    button.textContent = button.dataset.label + (found.length ? count : ": none");
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
  const late = (i) => {
    const decision = episode.decisions[decisionOf(i)];
    return decision.budget != null && decision.server > decision.budget;
  };
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

function facts(decision) {
  const row = rows[state.row], found = [];
  const tick = episode.ticks.length > 0;
  found.push(["time", at_time(row.t) + (tick ? `, tick ${state.row} of ${rows.length}` : "")]);
  if (tick) {
    const said = row.fresh === undefined ? "not reported" : row.fresh ? "the policy's action" : "hold";
    found.push(["command", (row.human ? "a human's action" : said) + (row.reason ? `: ${row.reason}` : "")]);
    const skipped = row.skipped ? `, ${row.skipped} skipped` : "";
    if (row.late !== undefined) found.push(["tick late by", ms(row.late) + skipped]);
    if (row.age !== undefined) found.push(["observation's age", ms(row.age)]);
    found.push(["seam", row.seam > 0 ? (100 * row.seam).toFixed(1) + " % of the range" : "none"]);
    if (row.reward !== undefined) found.push(["reward", num(row.reward) + (row.success ? ", success" : "")]);
  }
  if (decision) {
    const number = episode.decisions.indexOf(decision);
    const which = row.i >= 0 ? `, its action ${row.i}` : "";
    found.push(["decision", `${number} of ${episode.decisions.length}` + which]);
    found.push(["V", num(decision.v) + (decision.spread != null ? ` ± ${num(decision.spread)}` : "")]);
    found.push(["candidates", `${decision.asked}, V chose among ${decision.compared}`
      + decision.pruned.map(([k, n]) => `; ${n} after step ${k}`).join("")]);
    if (decision.continues) found.push(["continues", `${decision.continues} actions that played meanwhile`]);
    found.push(["refinement steps", String(decision.k)]);
    found.push(["queue, inference", `${ms(decision.queue)}, ${ms(decision.inference)}`]);
    found.push(["server, of budget", `${ms(decision.server)} of ${ms(decision.budget)}`]);
    found.push(["seed", decision.seed]);
  }
  const table = at("facts");
  table.replaceChildren(...found.map(([name, value]) => {
    const [line, th, td] = ["tr", "th", "td"].map((tag) => document.createElement(tag));
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
  at("scene").style.display = film || !box ? "none" : "block";
  at("paths").style.display = box ? "block" : "none";
  at("none").style.display = film || box ? "none" : "block";
  if (film) at("film").src = row.film; else if (box) drawScene(decision);
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
  element.addEventListener("pointerdown", (event) => {
    element.setPointerCapture(event.pointerId);
    seek(event);
  });
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
["seam", "value", "miss"].forEach((name) => at("to-" + name).addEventListener("click", () => {
  play(false);
  jump(name);
}));
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
