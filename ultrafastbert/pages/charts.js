// Draws the charts of a report from the data in the page, and reads out their values: with the pointer, a finger, or
// the arrow keys. Texts are set as text, never as HTML.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const NAMESPACE = "http://www.w3.org/2000/svg";
  const HEIGHT = 240, TOP = 10, BOTTOM = 38, RIGHT = 12, LEFT = 52;
  let axis = "step";

  function make(tag, attributes = {}, text = null) {
    const svg = ["svg", "path", "line", "text", "circle", "g", "clipPath", "rect"].includes(tag);
    const made = svg ? document.createElementNS(NAMESPACE, tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (text !== null) made.textContent = text;
    return made;
  }

  // 1200000 -> 1.2M; small numbers keep three digits
  function format(value, kind) {
    if (kind === "percent") return `${(100 * value).toFixed(Math.abs(value) < 0.1 ? 2 : 1)} %`;
    const size = Math.abs(value);
    if (size >= 1e9) return `${+(value / 1e9).toPrecision(4)}G`;
    if (size >= 1e6) return `${+(value / 1e6).toPrecision(4)}M`;
    if (size >= 1e4) return `${+(value / 1e3).toPrecision(4)}k`;
    if (size >= 100) return `${+value.toFixed(1)}`;
    if (size >= 1e-3 || value === 0) return `${+value.toPrecision(4)}`;
    return value.toExponential(2);
  }
  function tick(value, kind) {
    if (kind === "percent") return `${+(100 * value).toPrecision(3)} %`;
    const size = Math.abs(value);
    return size >= 1e3 && size < 1e6 ? `${+(value / 1e3).toPrecision(6)}k` : format(+value.toPrecision(6));
  }

  // Round values between two numbers, about `count` of them
  function ticks(low, high, count) {
    const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].find((factor) => factor * power >= 0.75 * rough) * power;
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
    return found;
  }

  function unit(most) {
    if (axis === "step") return { name: "step", scale: 1 };
    if (axis === "tokens") return { name: "tokens", scale: 1 };
    return most >= 7200 ? { name: "hours", scale: 3600 } : most >= 120 ? { name: "minutes", scale: 60 } : { name: "seconds", scale: 1 };
  }

  // Points [x, y] of a series that have both
  function points(series) {
    const group = data.runs[series.run][series.group], column = group[series.field];
    const y = series.layer === null ? column : column[series.layer], x = group[axis] || [];
    return y.map((value, i) => [x[i] ?? null, value]).filter(([a, b]) => a !== null && b !== null);
  }

  function look(series, node, chart) {
    if (series.layers) {
      node.classList.add("ramp");
      node.style.setProperty("--hue", 280 - 255 * series.layer / Math.max(1, series.layers - 1));
    } else node.classList.add(`s${series.run % 8}`);
    if (Math.floor(series.run / 8) % 2) node.classList.add("dashed");
    if (chart.id === "loss" && series.group === "training") node.classList.add("thin");
  }

  function nearest(list, x) {
    let low = 0, high = list.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (list[middle][0] < x) low = middle + 1; else high = middle;
    }
    return low > 0 && x - list[low - 1][0] <= list[low][0] - x ? low - 1 : low;
  }

  class Chart {
    constructor(chart, place) {
      this.chart = chart;
      this.at = null; // index in this.xs of the value that is read out
      this.plot = make("div", { class: "plot", tabindex: 0, role: "slider", "aria-label": `${chart.title}: arrow keys read the values` });
      this.readout = make("p", { class: "readout" });
      this.legend = make("ul", { class: "legend" });
      this.values = chart.series.map((series) => {
        const item = make("li"), swatch = make("i"), value = make("b");
        look(series, swatch, chart);
        item.append(swatch, `${series.name} `, value);
        this.legend.append(item);
        return value;
      });
      for (const reference of chart.references) {
        const item = make("li"), swatch = make("i", { class: "s7 dashed" });
        item.append(swatch, reference.name);
        this.legend.append(item);
      }
      this.remark = make("p", { class: "remark" });
      place.append(this.plot, this.readout, this.legend, this.remark);
      this.plot.addEventListener("pointermove", (event) => this.point(event));
      this.plot.addEventListener("pointerdown", (event) => this.point(event));
      this.plot.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse" && document.activeElement !== this.plot) this.show(null); });
      this.plot.addEventListener("focus", () => { if (this.at === null && this.plot.matches(":focus-visible")) this.show(this.xs.length - 1); });
      this.plot.addEventListener("blur", () => this.show(null));
      this.plot.addEventListener("keydown", (event) => this.key(event));
      this.draw();
      new ResizeObserver(() => { if (this.plot.clientWidth !== this.width) this.draw(); }).observe(this.plot);
    }

    draw() {
      const { chart } = this, width = this.width = this.plot.clientWidth || 600;
      this.lists = chart.series.map(points);
      this.xs = [...new Set(this.lists.flat().map(([x]) => x))].sort((a, b) => a - b);
      const values = this.lists.flat().map(([, y]) => y).concat(chart.references.map((one) => one.value));
      const svg = make("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, height: HEIGHT, "aria-hidden": "true" });
      this.plot.replaceChildren(svg);
      this.svg = svg;
      this.plot.setAttribute("aria-valuemin", 0);
      this.plot.setAttribute("aria-valuemax", Math.max(0, this.xs.length - 1));
      if (!this.xs.length) {
        svg.append(make("text", { x: LEFT, y: HEIGHT / 2 }, "These metrics do not have this axis."));
        this.show(null);
        return;
      }
      const scaled = unit(this.xs[this.xs.length - 1]);
      this.unit = scaled;
      let low = chart.zero ? Math.min(0, ...values) : Math.min(...values), high = Math.max(...values);
      if (high === low) { high += Math.abs(high) * 0.1 || 1; if (!chart.zero) low -= Math.abs(low) * 0.1 || 1; }
      // A few large values at the start would flatten all others: they are beyond the top, and the remark says so.
      const sorted = values.slice().sort((a, b) => a - b), most = sorted[Math.floor(0.98 * (sorted.length - 1))];
      const end = Math.max(most, ...chart.references.map((one) => one.value));
      const cut = chart.cut && high - low > 1.5 * (end - low);
      this.remark.textContent = cut ? `Values up to ${format(high, chart.format)} are above the top of the chart.` : "";
      if (cut) high = end;
      high += (high - low) * 0.04;
      if (!chart.zero) low -= (high - low) * 0.04;
      let first = this.xs[0], last = this.xs[this.xs.length - 1];
      if (first === last) { first -= 0.5 * scaled.scale; last += 0.5 * scaled.scale; }
      this.x = (value) => LEFT + (value - first) / (last - first) * (width - LEFT - RIGHT);
      this.y = (value) => TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM);
      for (const value of ticks(low, high, 5)) {
        const y = this.y(value);
        svg.append(make("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y, y2: y }));
        svg.append(make("text", { x: LEFT - 6, y: y + 4, "text-anchor": "end" }, tick(value, chart.format)));
      }
      const bottom = HEIGHT - BOTTOM;
      for (const value of ticks(first / scaled.scale, last / scaled.scale, Math.max(3, Math.floor(width / 90)))) {
        const x = this.x(value * scaled.scale);
        svg.append(make("line", { class: "grid", x1: x, x2: x, y1: bottom, y2: bottom + 4 }));
        const anchor = x > width - RIGHT - 20 ? "end" : "middle";
        svg.append(make("text", { x, y: bottom + 17, "text-anchor": anchor }, tick(value)));
      }
      const clip = make("clipPath", { id: `clip-${chart.id}` });
      clip.append(make("rect", { x: LEFT - 6, y: TOP, width: width - LEFT - RIGHT + 12, height: HEIGHT - TOP - BOTTOM + 6 }));
      const lines = make("g", { "clip-path": `url(#clip-${chart.id})` });
      svg.append(clip, lines);
      svg.append(make("text", { x: (LEFT + width - RIGHT) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, scaled.name));
      for (const { value } of chart.references) {
        svg.append(make("line", { class: "reference", x1: LEFT, x2: width - RIGHT, y1: this.y(value), y2: this.y(value) }));
      }
      chart.series.forEach((series, i) => {
        const list = this.lists[i];
        const path = make("path", { d: list.map(([x, y], n) => `${n ? "L" : "M"}${this.x(x).toFixed(1)} ${this.y(y).toFixed(1)}`).join("") });
        look(series, path, chart);
        lines.append(path);
        if (list.length === 1 || (series.group === "validation" && list.length * 12 < width)) {
          const dots = make("g");
          look(series, dots, chart);
          for (const [x, y] of list) dots.append(make("circle", { cx: this.x(x), cy: this.y(y), r: 2.5 }));
          lines.append(dots);
        }
      });
      this.cursor = make("g");
      svg.append(this.cursor);
      this.show(this.at === null ? null : Math.min(this.at, this.xs.length - 1));
    }

    point(event) {
      if (!this.xs.length) return;
      const x = event.clientX - this.svg.getBoundingClientRect().left;
      this.show(nearest(this.xs.map((value) => [this.x(value)]), x));
    }

    key(event) {
      const last = this.xs.length - 1, at = this.at ?? last;
      const to = { ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1, PageDown: at - 10,
        PageUp: at + 10, Home: 0, End: last }[event.key];
      if (event.key === "Escape") this.show(null);
      if (to === undefined || last < 0) return;
      event.preventDefault();
      this.show(Math.max(0, Math.min(last, to)));
    }

    // Reads out the values at a place, or says how to read them
    show(at) {
      this.at = at;
      if (this.cursor) this.cursor.replaceChildren();
      if (at === null || !this.xs.length) {
        this.readout.textContent = "";
        this.values.forEach((value) => { value.textContent = ""; });
        this.plot.setAttribute("aria-valuenow", Math.max(0, this.xs.length - 1));
        this.plot.setAttribute("aria-valuetext", "no value chosen");
        return;
      }
      const x = this.xs[at], spoken = [];
      const place = `${this.unit.name} ${format(x / this.unit.scale)}`;
      this.cursor.append(make("line", { class: "cursor", x1: this.x(x), x2: this.x(x), y1: TOP, y2: HEIGHT - BOTTOM }));
      this.chart.series.forEach((series, i) => {
        const list = this.lists[i];
        // a series that has ended before, or begins later, has no value here
        if (!list.length || x < list[0][0] && at < this.xs.length - 1 || x > list[list.length - 1][0]) {
          this.values[i].textContent = list.length && x > list[list.length - 1][0] ? "ended before" : "";
          return;
        }
        const [pointX, y] = list[nearest(list, x)];
        const elsewhere = pointX === x ? "" : ` (at ${format(pointX / this.unit.scale)})`;
        this.values[i].textContent = `${format(y, this.chart.format)}${elsewhere}`;
        spoken.push(`${series.name} ${this.values[i].textContent}`);
        const dot = make("g");
        look(series, dot, this.chart);
        dot.append(make("circle", { cx: this.x(pointX), cy: Math.max(TOP, this.y(y)), r: 4 }));
        this.cursor.append(dot);
      });
      this.readout.textContent = `At ${place}:`;
      this.plot.setAttribute("aria-valuenow", at);
      this.plot.setAttribute("aria-valuetext", `${place}: ${spoken.join(", ")}`);
    }
  }

  const charts = data.charts.map((chart) => new Chart(chart, document.querySelector(`[data-chart="${chart.id}"]`)));
  for (const input of document.querySelectorAll("input[name=axis]")) {
    input.addEventListener("change", () => {
      axis = input.value;
      charts.forEach((chart) => { chart.at = null; chart.draw(); });
    });
  }
})();
