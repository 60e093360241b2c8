"use strict";
/* The end effector and its chunks, drawn in three dimensions on a canvas. */

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
  const [cy, sy] = [Math.cos(state.yaw), Math.sin(state.yaw)];
  const [cp, sp] = [Math.cos(state.pitch), Math.sin(state.pitch)];
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
    for (const p of decision.previews) {
      if (p.x) stroke(pen, p.x.map(to), shade(p.c), 1, 0.15 + 0.4 * p.k / data.steps);
    }
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
