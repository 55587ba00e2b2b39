// What pages do beyond links and forms: the live chart, the theme, copying, and sending a form once.
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
      const search = document.querySelector("[data-search]");
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
    if (value == null) return "—";
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
        series: [{ label: "UTC", value: (_, time) => (time == null ? "—" : clock(time)) }, ...series],
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

  document.addEventListener("DOMContentLoaded", () => {
    document.querySelector(".menu [aria-current]")?.scrollIntoView({ block: "nearest" });
    for (const place of document.querySelectorAll("[data-history]")) new Plot(place);
  });
})();
