// The curves: one uPlot for each panel, and the controls that its figure shares.
"use strict";

const WIDTHS = { ours: 2.2, seed: 0.8, paper: 1 };
const DASH = [6, 4];

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const colourOf = (depth) => colour(`--net-${depth}`) || colour("--net-other");

// uPlot wants one x axis for all lines: the union of theirs, with gaps.
function aligned(lines) {
  return uPlot.join(lines.map((line) => [line.x, line.y]));
}

function seriesOf(line) {
  const pale = line.whose === "paper" || line.whose === "seed" ? "99" : "";
  return {
    label: line.net,
    stroke: () => colourOf(line.depth) + pale,
    width: WIDTHS[line.whose] * (line.kind === "train" && line.whose === "ours" ? 0.7 : 1),
    dash: line.kind === "train" ? DASH : undefined,
    points: { show: false },
    spanGaps: true,
  };
}

function axesOf(unit) {
  const look = { stroke: () => colour("--quiet"), grid: { stroke: () => colour("--grid"), width: 1 }, ticks: { show: false } };
  const font = "12px system-ui, sans-serif";
  const iterations = (_, ticks) => ticks.map((tick) => (tick / unit).toLocaleString("en", { maximumFractionDigits: 2 }));
  return [
    { ...look, font, values: iterations, label: unit > 1 ? "iterations (1e4)" : "iterations", labelFont: font, labelSize: 20, size: 32, space: 60 },
    { ...look, font, size: 36, values: (_, ticks) => ticks.map((tick) => `${+tick.toFixed(2)}`) },
  ];
}

// The line closest to the pointer, with its sample closest in x.
function closest(plot, lines) {
  const { left, top } = plot.cursor;
  let best = null;
  if (left < 0) return best;
  lines.forEach((line, index) => {
    if (!plot.series[index + 1].show) return;
    line.x.forEach((x, at) => {
      const away = Math.hypot(plot.valToPos(x, "x") - left, plot.valToPos(line.y[at], "y") - top);
      if (away < 30 && (!best || away < best.away)) best = { line, at, away };
    });
  });
  return best;
}

function told({ line, at }) {
  const whose = { ours: "ours", paper: "the paper’s", seed: `ours, seed ${line.seed}` }[line.whose];
  const iteration = Math.round(line.x[at]).toLocaleString("en");
  return `${line.net}, ${line.told} error, ${whose}: ${line.y[at].toFixed(1)} % at ${iteration} iterations`;
}

class Panel {
  constructor(holder, data, unit, say) {
    const [start, end, floor, top] = data.frame;
    Object.assign(this, { lines: data.lines, start, end });
    const fitted = (_, low, high) => (low == null || !this.zoomed ? [floor, top] : uPlot.rangeNum(low, high, 0.08, true));
    const options = {
      width: holder.clientWidth, height: holder.clientHeight, legend: { show: false },
      scales: { x: { time: false, range: (_, low, high) => this.bounded(low, high) }, y: { range: fitted } },
      series: [{}, ...data.lines.map(seriesOf)], axes: axesOf(unit),
      cursor: {
        points: { show: false }, y: false, drag: { x: true, y: false },
        bind: { dblclick: () => () => { this.reset(); return null; } }, // uPlot's own would fit the samples
      },
      hooks: { setCursor: [(plot) => { const found = closest(plot, data.lines); if (found) say(told(found)); }] },
    };
    this.plot = new uPlot(options, data.lines.length ? aligned(data.lines) : [[start, end]], holder);
    this.reset();
    new ResizeObserver(() => {
      if (holder.clientWidth) this.plot.setSize({ width: holder.clientWidth, height: holder.clientHeight });
    }).observe(holder);
  }

  // A range of iterations that lies within the frame; anything wider is the frame. uPlot asks for it before
  // it asks for that of the errors, which is the figure's own unless one has zoomed in.
  bounded(low, high) {
    const width = high - low;
    this.zoomed = low != null && width < this.end - this.start;
    if (!this.zoomed) return [this.start, this.end];
    const from = Math.min(Math.max(low, this.start), this.end - width);
    return [from, from + width];
  }

  reset() {
    this.plot.setScale("x", { min: this.start, max: this.end });
  }

  move(kind) {
    const { min, max } = this.plot.scales.x, middle = (min + max) / 2, half = (max - min) / 2;
    if (kind === "reset") return this.reset();
    const factor = { in: 0.5, out: 2 }[kind] || 1, shift = { left: -half, right: half }[kind] || 0;
    this.plot.setScale("x", { min: middle + shift - half * factor, max: middle + shift + half * factor });
  }

  show(wanted) {
    this.plot.batch(() => this.lines.forEach((line, index) => {
      if (this.plot.series[index + 1].show !== wanted(line)) this.plot.setSeries(index + 1, { show: wanted(line) });
    }));
  }
}

function wireFigure(figure, data) {
  const readout = figure.querySelector(".readout");
  const say = (text) => { readout.textContent = text; };
  const holders = figure.querySelectorAll(".plot");
  const panels = data.panels.map((panel, index) => new Panel(holders[index], panel, data.unit, say));
  const boxes = [...figure.querySelectorAll("input")];
  const on = (attribute) => new Set(boxes.filter((box) => box.checked).map((box) => box.dataset[attribute]));
  const update = () => {
    const depths = on("depth"), lines = on("line");
    panels.forEach((panel) => panel.show((line) => depths.has(`${line.depth}`) && lines.has(line.kind) && lines.has(line.whose)));
  };
  boxes.forEach((box) => box.addEventListener("change", update));
  figure.querySelectorAll("[data-zoom]").forEach((button) => {
    button.addEventListener("click", () => panels.forEach((panel) => panel.move(button.dataset.zoom)));
  });
  update();
  return panels;
}
