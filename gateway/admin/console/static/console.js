// What pages do beyond links and forms: charts, the theme, copying, and sending a form once.
(() => {
  "use strict";

  const root = document.documentElement;

  function toggleTheme() {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    document.cookie = `tollkeeper_theme=${root.dataset.theme}; path=/; max-age=31536000; samesite=strict`;
    document.dispatchEvent(new Event("theme"));
  }

  async function copy(button) {
    const text = document.querySelector(button.dataset.copy).textContent;
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(document.querySelector(button.dataset.copy));
    }
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if ("themeToggle" in button.dataset) toggleTheme();
    else if (button.dataset.copy) copy(button);
  });

  // A second press while the first is under way asks for nothing.
  document.addEventListener("submit", (event) => {
    if (!("once" in event.target.dataset)) return;
    const button = event.target.querySelector("button[type=submit]");
    setTimeout(() => { button.disabled = true; });
    addEventListener("pageshow", () => { button.disabled = false; }, { once: true });
  });

  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches("input, textarea, select");
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
      const search = document.querySelector("main [data-search]") ?? document.querySelector("[data-search]");
      if (search) { event.preventDefault(); search.focus(); search.select(); }
    }
    if (event.key === "Escape" && location.hash === "#menu") location.hash = "main";
  });

  // Empty filters make long addresses for nothing.
  document.addEventListener("htmx:configRequest", (event) => {
    if (!event.detail.elt.matches("form.filters")) return;
    for (const [name, value] of Object.entries(event.detail.parameters)) {
      if (value === "") delete event.detail.parameters[name];
    }
  });

  // What could not be had is said where it was asked for, until the next answer there.
  document.addEventListener("htmx:afterRequest", (event) => {
    const { target, xhr, successful } = event.detail;
    if (target.previousElementSibling?.matches("[data-failed]")) target.previousElementSibling.remove();
    if (successful || xhr.status === 422 || xhr.status === 401) return;
    const page = new DOMParser().parseFromString(xhr.responseText, "text/html");
    const said = page.querySelector(".error-page h1")?.textContent ?? "The server does not answer. It is asked again with the next change.";
    const notice = Object.assign(document.createElement("p"), { className: "notice bad", role: "alert", textContent: said });
    notice.dataset.failed = "";
    if (document.contains(target)) target.before(notice);
  });

  // A list that is asked again takes nobody's place: who stood on a link stands on it again.
  let stood = null;
  document.addEventListener("htmx:beforeSwap", (event) => {
    const on = document.activeElement;
    if (event.detail.target.contains(on)) stood = on.getAttribute("href");
  });
  document.addEventListener("htmx:afterSwap", () => {
    if (stood !== null && document.activeElement === document.body) {
      document.querySelector(`main a[href="${CSS.escape(stood)}"]`)?.focus({ preventScroll: true });
    }
    stood = null;
  });

  const VIEWS = {
    requests: [["requests/s", 1, "--s0"], ["refused/s", 2, "--bad"]],
    tokens: [["tokens/s", 3, "--s1"]],
    latency: [["p50, ms", 4, "--s0"], ["p99, ms", 5, "--s2"]],
  };

  function colour(name) {
    return getComputedStyle(root).getPropertyValue(name).trim();
  }

  function short(value) {
    if (value == null) return "";
    const at = [[1e9, "G"], [1e6, "M"], [1e3, "k"]].find(([step]) => Math.abs(value) >= step);
    if (!at) return value >= 100 ? value.toFixed(0) : value.toFixed(value < 10 && value % 1 ? 1 : 0);
    return `${(value / at[0]).toFixed(1).replace(".0", "")} ${at[1]}`;
  }

  function clock(seconds) {
    return new Date(seconds * 1000).toISOString().slice(11, 19);
  }

  class Plot {
    constructor(place) {
      this.place = place;
      this.view = "requests";
      this.columns = [[], [], [], [], [], []];
      this.draw();
      new ResizeObserver(() => this.chart.setSize(this.size())).observe(place);
      document.addEventListener("theme", () => this.draw());
      matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
      const buttons = document.querySelectorAll("[data-series]");
      for (const button of buttons) {
        button.addEventListener("click", () => {
          for (const each of buttons) each.setAttribute("aria-pressed", String(each === button));
          this.view = button.dataset.series;
          this.draw();
        });
      }
      this.poll();
    }

    size() {
      return { width: Math.max(this.place.clientWidth, 120), height: 200 };
    }

    data() {
      return [this.columns[0], ...VIEWS[this.view].map(([, column]) => this.columns[column])];
    }

    draw() {
      this.chart?.destroy();
      const axis = { stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "12px system-ui" };
      const series = VIEWS[this.view].map(([label, , name]) => ({
        label, stroke: colour(name), width: 1.5, points: { show: false }, value: (_, value) => short(value), spanGaps: true,
      }));
      this.chart = new uPlot({
        ...this.size(),
        series: [{ label: "UTC", value: (_, time) => (time == null ? "" : clock(time)) }, ...series],
        axes: [{ ...axis, space: 80, size: 32, values: (_, times) => times.map(clock) }, { ...axis, size: 56, values: (_, values) => values.map(short) }],
        scales: { x: { range: (_, low, high) => [Math.min(low, high - 60), high] }, y: { range: (_, low, high) => [0, high > 0 ? high * 1.1 : 1] } },
        cursor: { drag: { x: false, y: false } },
      }, this.data(), this.place);
    }

    async poll() {
      if (!document.hidden) {
        try {
          const answer = await fetch(this.place.dataset.history, { headers: { "HX-Request": "true" } });
          if (answer.status === 401) { location.assign("/sign-in"); return; }
          if (answer.ok) { this.columns = await answer.json(); this.chart.setData(this.data()); }
        } catch { /* the keeper is being restarted: the next round finds it */ }
      }
      setTimeout(() => this.poll(), 1000);
    }
  }

  // A chart of use, drawn from the table below it: exact there, at a glance here.
  class UsageChart {
    constructor(figure) {
      this.figure = figure;
      this.stacks = figure.dataset.chart === "stacked";
      this.currency = figure.dataset.currency;
      const table = figure.querySelector("table.over-time");
      this.names = [...table.querySelectorAll("thead th[data-colour]")].map((th) => [th.textContent, `--s${th.dataset.colour}`]);
      const rows = [...table.querySelectorAll("tbody tr")];
      this.times = rows.map((row) => Number(row.dataset.at));
      this.labels = new Map(rows.map((row) => [Number(row.dataset.at), row.querySelector("th").textContent]));
      this.amounts = this.names.map((_, at) => rows.map((row) => Number(row.querySelectorAll("td[data-value]")[at].dataset.value)));
      // The drawn heights: sums of a series and all below it where they are stacked, the highest first.
      this.heights = this.stacks
        ? this.amounts.map((_, at) => this.times.map((_, time) => this.amounts.slice(0, at + 1).reduce((sum, of) => sum + of[time], 0)))
        : this.amounts;
      this.place = document.createElement("div");
      this.place.className = "plot";
      this.place.setAttribute("role", "img");
      this.place.setAttribute("aria-label", figure.querySelector("svg").getAttribute("aria-label"));
      figure.querySelector("svg").replaceWith(this.place);
      figure.querySelector(".bars-axis").remove();
      figure.querySelector("figcaption").remove();
      this.draw();
      this.watch = new ResizeObserver(() => this.chart.setSize(this.size()));
      this.watch.observe(this.place);
      this.again = () => (this.place.isConnected ? this.draw() : this.end());
      this.scheme = matchMedia("(prefers-color-scheme: dark)");
      document.addEventListener("theme", this.again);
      this.scheme.addEventListener("change", this.again);
    }

    end() {
      this.watch.disconnect();
      document.removeEventListener("theme", this.again);
      this.scheme.removeEventListener("change", this.again);
    }

    size() {
      return { width: Math.max(this.place.clientWidth, 120), height: 240 };
    }

    said(value) {
      if (value == null || !this.currency) return short(value);
      const digits = value >= 100 || value === 0 ? { maximumFractionDigits: 0 } : { maximumSignificantDigits: 3 };
      return new Intl.NumberFormat("en", { style: "currency", currency: this.currency, ...digits }).format(value);
    }

    // A label of the axis: the month, the day or, where it is not midnight, the hour.
    day(seconds) {
      const text = new Date(seconds * 1000).toISOString();
      if ([...this.labels.values()][0].length === 7) return text.slice(0, 7);
      return text.slice(11, 16) === "00:00" ? text.slice(5, 10) : text.slice(11, 16);
    }

    draw() {
      this.chart?.destroy();
      const axis = { stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "12px system-ui" };
      const order = this.names.map((_, at) => at);
      if (this.stacks) order.reverse();
      const paths = this.stacks ? uPlot.paths.bars({ size: [0.8, 48] }) : undefined;
      const series = order.map((at) => ({
        label: this.names[at][0], stroke: colour(this.names[at][1]), width: this.stacks ? 0 : 1.5, paths,
        fill: this.stacks ? colour(this.names[at][1]) : undefined, points: { show: !this.stacks && this.times.length < 2 },
        value: (_, __, ___, time) => (time == null ? "" : this.said(this.amounts[at][time])),
      }));
      const step = this.times[1] - this.times[0] || 86400;
      this.chart = new uPlot({
        ...this.size(),
        tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "UTC"),
        series: [{ label: "UTC", value: (_, __, ___, time) => (time == null ? "" : this.labels.get(this.times[time])) }, ...series],
        axes: [{ ...axis, space: 72, size: 32, incrs: [1, 2, 3, 4, 6, 7, 12, 14, 24, 30, 48, 60, 90, 180, 365].map((times) => times * step), values: (_, times) => times.map((time) => this.day(time)) }, { ...axis, size: (_, said) => Math.max(64, 12 + 7 * Math.max(0, ...(said ?? []).map((text) => text.length))), values: (_, values) => values.map((value) => this.said(value)) }],
        scales: {
          x: { time: true, range: (_, low, high) => (this.stacks ? [low - step / 2, high + step / 2] : [low, high > low ? high : low + step]) },
          y: { range: (_, low, high) => [0, high > 0 ? high * 1.08 : 1] },
        },
        cursor: { drag: { x: false, y: false }, points: { show: !this.stacks } },
      }, [this.times, ...order.map((at) => this.heights[at])], this.place);
    }
  }

  // Also what comes later: a page's part that was asked for again.
  document.addEventListener("htmx:load", (event) => {
    for (const figure of event.detail.elt.querySelectorAll("figure[data-chart]")) new UsageChart(figure);
  });

  document.addEventListener("DOMContentLoaded", () => {
    document.querySelector(".menu [aria-current]")?.scrollIntoView({ block: "nearest" });
    for (const place of document.querySelectorAll("[data-history]")) new Plot(place);
  });
})();
