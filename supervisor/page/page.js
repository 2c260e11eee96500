// Draws the charts of the report, and their tables when they are opened. Names come from a job: they are text, never markup.
"use strict";
(async () => {
  const by = id => document.getElementById(id);
  if (!by("charts")) return;
  const header = JSON.parse(by("header").textContent);
  const outcomes = header.outcomes;
  const PAGE_ROWS = 200, DAY_MS = 86400e3;
  const RANGES = [["24 hours", DAY_MS], ["7 days", 7 * DAY_MS], ["30 days", 30 * DAY_MS], ["All", Infinity]];
  let bytes;
  try {
    const packed = Uint8Array.from(atob(by("blob").textContent), c => c.charCodeAt(0));
    const flow = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    bytes = await new Response(flow).arrayBuffer();
  } catch (error) {
    by("trouble").hidden = false;
    by("trouble").textContent = "The charts can't be drawn: this browser can't unpack their figures (" + error.name + "). Take a newer one.";
    return;
  }
  const plain = text => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;"); // plotly reads some markup
  const column = (job, name) => {
    const [kind, from] = job.columns[name];
    return kind === "d" ? new Float64Array(bytes.slice(from, from + 8 * job.count)) : new Float32Array(bytes.slice(from, from + 4 * job.count));
  };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let printing = false, job = header.jobs[0], range = null, spoken = 0;

  const look = () => {
    const light = printing || !dark.matches;
    return {
      // After Okabe and Ito, who chose them for all kinds of colour vision; brighter where the paper is dark.
      colors: light ? ["#0072B2", "#D55E00", "#007A5A", "#A8508A", "#8A6D00", "#3A6EA5", "#555555", "#B3404A"] : ["#56B4E9", "#FF9F5A", "#2ED9A4", "#E79AC8", "#F0E442", "#9CC4FF", "#BBBBBB", "#FF8A94"],
      text: light ? "#1b1f24" : "#e6edf3", line: light ? "#d0d7de" : "#30363d", paper: light ? "#ffffff" : "#0d1117",
    };
  };
  // Named one by one: among plotly's own buttons is one that sends the chart to a server.
  const CONFIG = { responsive: true, displaylogo: false, plotlyServerURL: "", modeBarButtons: [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]] };
  const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];

  const PAPER_PX = 680; // the width of A4 between its margins: the window's may be twice that
  const layout = (unit, more) => {
    const l = look();
    const axis = { gridcolor: l.line, linecolor: l.line, zerolinecolor: l.line };
    return {
      paper_bgcolor: l.paper, plot_bgcolor: l.paper, font: { color: l.text, family: "system-ui, sans-serif", size: 13 },
      margin: { l: 60, r: 12, t: 8, b: 36 }, hovermode: "x unified", showlegend: true, hoverlabel: { bgcolor: l.paper, font: { color: l.text } },
      legend: { orientation: "h", y: -0.18, traceorder: "normal" }, dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
      xaxis: { ...axis, type: "date", ...(range ? { range } : {}) }, yaxis: { ...axis, rangemode: "tozero", fixedrange: true, title: { text: unit } },
      ...(printing ? { width: PAPER_PX, autosize: false } : { autosize: true }), ...more,
    };
  };
  const line = (name, x, y, i, more) => ({ type: "scatter", mode: "lines", name: plain(name), x, y, line: { color: look().colors[i % 8], width: 1.5, dash: DASHES[i % 6] }, ...more });

  // How many cycles ended in which way, by day, or by hour where there are few.
  const counted = () => {
    const x = column(job, "at_ms"), outcome = column(job, "outcome");
    const step = x[x.length - 1] - x[0] > 4 * DAY_MS ? DAY_MS : DAY_MS / 24;
    const bins = new Map();
    x.forEach((at, i) => {
      const bin = Math.floor(at / step) * step;
      if (!bins.has(bin)) bins.set(bin, new Uint32Array(outcomes.length));
      bins.get(bin)[outcome[i]]++;
    });
    return { step, bins };
  };

  const charts = {
    memory() {
      const x = column(job, "at_ms"), peak = column(job, "peak"), outcome = column(job, "outcome"), code = column(job, "code");
      const bad = [...x.keys()].filter(i => !["ok", "stopped"].includes(outcomes[outcome[i]]));
      const mb = values => Float32Array.from(values, v => v / 1e6);
      const marks = {
        type: "scatter", mode: "markers", name: "not ok", x: bad.map(i => x[i]), y: bad.map(i => peak[i] / 1e6), hoverinfo: "text",
        text: bad.map(i => plain(outcomes[outcome[i]] + " " + header.codes[code[i]])), marker: { color: look().colors[1], symbol: "x", size: 8 },
      };
      return [[
        line("worker's peak", x, mb(peak), 0), line("ceiling", x, mb(column(job, "ceiling")), 1),
        line("supervisor", x, mb(column(job, "parent")), 2, { line: { color: look().colors[2], width: 2.5 } }), ...(bad.length ? [marks] : []),
      ], layout("MB")];
    },
    durations() {
      const x = column(job, "at_ms");
      const phases = job.phases.map((name, i) => line(name.replace(/_s$/, ""), x, column(job, "summary." + name), i + 1, { stackgroup: "phases", line: { color: look().colors[(i + 1) % 8], width: 0.5 } }));
      return [[...phases, line("whole cycle", x, column(job, "duration_s"), 0)], layout("seconds")];
    },
    figures() {
      const x = column(job, "at_ms");
      const traces = job.figures.map((name, i) => {
        const values = column(job, "summary." + name);
        const shown = i < 6 && !name.includes("bytes") && values.some(v => v > 0);
        return line(name, x, values, i, shown ? {} : { visible: "legendonly" });
      });
      return [traces, layout("a cycle")];
    },
    outcomes() {
      const { step, bins } = counted();
      const at = [...bins.keys()], patterns = ["", "/", "x", "\\", "-", "|", "+"];
      const traces = outcomes.map((name, o) => ({
        type: "bar", name, x: at, y: at.map(bin => bins.get(bin)[o]), xperiod: step, xperiodalignment: "start", offset: 0, width: step,
        marker: { color: look().colors[[2, 1, 7, 3, 4, 0, 6][o]], pattern: { shape: patterns[o] } },
      })).filter(trace => trace.y.some(v => v));
      return [traces, layout("cycles", { barmode: "stack" })];
    },
  };
  const TABLES = {
    memory: () => [["peak", "worker's peak, bytes"], ["ceiling", "ceiling, bytes"], ["parent", "supervisor, bytes"]],
    durations: () => [["duration_s", "whole cycle, s"], ...job.phases.map(name => ["summary." + name, name])],
    figures: () => job.figures.map(name => ["summary." + name, name]),
  };

  const draw = async id => {
    const [traces, shape] = charts[id]();
    const before = by(id).data; // what was shown or hidden stays so
    if (before && before.length === traces.length) traces.forEach((trace, i) => { if (before[i].visible !== undefined && before[i].name === trace.name) trace.visible = before[i].visible; });
    await Plotly.react(by(id), traces, shape, CONFIG);
  };
  const drawAll = () => Promise.all(Object.keys(charts).map(draw));

  const show = async wanted => {
    range = wanted;
    const seen = ++spoken;
    for (const id of Object.keys(charts)) {
      await Plotly.relayout(by(id), wanted ? { "xaxis.range": wanted } : { "xaxis.autorange": true });
      if (seen !== spoken) return;
    }
    if (!wanted) press("All");
  };
  const press = name => by("ranges").childNodes.forEach(one => one.setAttribute("aria-pressed", String(one.textContent === name)));

  // What a person zooms in one chart is shown in all of them.
  let following = false;
  const follow = async changed => {
    if (following) return;
    following = true;
    try {
      if (changed["xaxis.autorange"]) await show(null);
      else if (changed["xaxis.range[0]"] !== undefined) { press(""); await show([changed["xaxis.range[0]"], changed["xaxis.range[1]"]]); }
    } finally { following = false; }
  };
  const guarded = async wanted => { following = true; try { await show(wanted); } finally { following = false; } };

  const key = (event, id) => {
    const axis = by(id)._fullLayout.xaxis, [from, to] = axis.range.map(at => axis.d2l(at));
    const span = to - from, moves = { ArrowLeft: [-0.2, -0.2], ArrowRight: [0.2, 0.2], "+": [0.2, -0.2], "=": [0.2, -0.2], "-": [-0.3, 0.3] };
    if (event.key === "0") guarded(null);
    else if (moves[event.key]) { const [a, b] = moves[event.key]; press(""); guarded([axis.l2d(from + a * span), axis.l2d(to + b * span)]); }
    else return;
    event.preventDefault();
  };

  // A table is made when it is opened, a page of rows at a time, the last one first.
  const time = at => new Date(at).toISOString().slice(0, 19).replace("T", " ");
  const figures = chart => {
    if (chart === "outcomes") {
      const { bins } = counted(), at = [...bins.keys()].sort((a, b) => a - b);
      return { heads: ["from, UTC", ...outcomes], count: at.length, row: i => [time(at[i]), ...bins.get(at[i])] };
    }
    const at = column(job, "at_ms"), cycle = column(job, "cycle"), outcome = column(job, "outcome"), code = column(job, "code");
    const columns = TABLES[chart](), values = columns.map(([name]) => column(job, name));
    return {
      heads: ["start, UTC", "cycle", "outcome", "error", ...columns.map(one => one[1])], count: job.count,
      row: i => [time(at[i]), cycle[i], outcomes[outcome[i]], header.codes[code[i]], ...values.map(one => Number.isNaN(one[i]) ? "" : Number.isInteger(one[i]) ? one[i] : +one[i].toPrecision(7))],
    };
  };
  const table = (details, wanted) => {
    const { heads, count, row } = figures(details.dataset.chart);
    const first = Math.min(count, wanted), last = Math.max(0, first - PAGE_ROWS);
    const element = (tag, text, more) => Object.assign(document.createElement(tag), { textContent: text }, more);
    const made = element("table", ""), head = made.createTHead().insertRow(), body = made.createTBody();
    made.prepend(element("caption", `Rows ${(last + 1).toLocaleString("en")} to ${first.toLocaleString("en")} of ${count.toLocaleString("en")}, the last one first`));
    heads.forEach(name => head.append(element("th", name, { scope: "col" })));
    for (let i = first - 1; i >= last; i--) {
      const [name, ...cells] = row(i), made = body.insertRow();
      made.append(element("th", name, { scope: "row" }));
      for (const cell of cells) made.append(element("td", cell, typeof cell === "number" ? { className: "n" } : {}));
    }
    const turn = (name, to, useful) => element("button", name, { type: "button", disabled: !useful, onclick: () => table(details, to) });
    details.querySelector("div").replaceChildren(turn("Newer", first + PAGE_ROWS, first < count), turn("Older", last, last > 0), made);
  };

  header.jobs.forEach((one, i) => by("job").append(new Option(one.name, i)));
  by("pick").hidden = header.jobs.length < 2;
  const openTables = () => document.querySelectorAll("details.data").forEach(one => { if (one.open) table(one, Infinity); else one.querySelector("div").replaceChildren(); });
  by("job").onchange = async () => { job = header.jobs[by("job").value]; await drawAll(); openTables(); };
  document.querySelectorAll("details.data").forEach(one => { one.ontoggle = () => { if (one.open) table(one, Infinity); }; });
  const last = span => { const end = column(job, "at_ms").reduce((a, b) => Math.max(a, b)); return span === Infinity ? null : [new Date(end - span).toISOString(), new Date(end + span / 50).toISOString()]; };
  for (const [name, span] of RANGES) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: name });
    button.onclick = () => { press(name); guarded(last(span)); };
    by("ranges").append(button);
  }
  const times = column(job, "at_ms"), many = times[times.length - 1] - times[0] > 30 * DAY_MS;
  if (many) range = last(7 * DAY_MS); // a year of half hours is a blot
  press(many ? "7 days" : "All");
  by("tools").hidden = false;
  await drawAll();
  for (const id of Object.keys(charts)) {
    by(id).on("plotly_relayout", follow);
    by(id).addEventListener("keydown", event => key(event, id));
  }
  dark.addEventListener("change", drawAll);
  addEventListener("beforeprint", () => { printing = true; drawAll(); });
  addEventListener("afterprint", async () => { printing = false; await drawAll(); Object.keys(charts).forEach(id => Plotly.Plots.resize(by(id))); });
  document.documentElement.dataset.drawn = "yes"; // for whoever waits for it
})();
