"use strict";
// The tables of the page are all that this script knows: it sorts, filters, folds and draws them.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes, listeners (`on...`) and children; texts stay texts. */
function make(tag, of = {}, ...children) {
  const svg = ["svg", "g", "circle", "path", "line", "text", "title"].includes(tag);
  const element = svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(of)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

const plain = (text) => text.toLowerCase().replace(/[\s_]+/g, "");

// ---- one table ----------------------------------------------------------------------------------

class Board {
  constructor(panel) {
    this.panel = panel;
    this.table = panel.querySelector(".board");
    this.heads = [...this.table.tHead.rows[0].cells];
    this.titles = this.heads.map((head) => head.textContent.trim());
    this.rows = [...this.table.tBodies[0].rows];
    this.names = this.rows.map((row) => row.cells[0].textContent.trim());
    this.open = new Set(); // methods whose variants are shown
    this.kept = new Set(this.rows);
    this.sorted = null;
    this.folds = this.rows.some((row, n) => this.rows.findIndex((one) => one.dataset.method === row.dataset.method) !== n)
      && panel.querySelector("[data-rows]") !== null;
    this.folded = this.folds;
    this.readySort();
    this.readyRows();
    this.readyControls();
    this.heads.forEach((head, at) => { if ("off" in head.dataset) this.showColumn(at, false); });
    this.lay();
  }

  value(row, at) {
    const of = row.cells[at].dataset.v;
    return of === undefined ? null : Number(of);
  }

  text(row, at) {
    if (at === 0) return this.names[this.rows.indexOf(row)];
    return row.cells[at].textContent.trim().replace(/\s+/g, " ");
  }

  // ---- sorting and folding

  readySort() {
    this.heads.forEach((head, at) => {
      const button = make("button", { class: "sort", type: "button", onclick: () => this.sort(at) });
      button.append(...head.childNodes);
      head.append(button);
    });
  }

  sort(at) {
    const head = this.heads[at];
    const number = head.classList.contains("n");
    const first = number && !("lower" in head.dataset) ? "descending" : "ascending";
    const now = head.getAttribute("aria-sort");
    const next = !now ? first : now === "ascending" ? "descending" : "ascending";
    this.heads.forEach((one) => one.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", next);
    this.sorted = { at, sign: next === "ascending" ? 1 : -1 };
    this.lay();
  }

  ordered() {
    if (!this.sorted) return this.rows;
    const { at, sign } = this.sorted;
    const keyed = this.rows.map((row, n) => ({ row, n, v: this.value(row, at), t: this.text(row, at) }));
    const numbers = keyed.some((one) => one.v !== null);
    keyed.sort((a, b) => {
      if (numbers) {
        if (a.v === null || b.v === null) return (a.v === null) - (b.v === null) || a.n - b.n;
        return sign * (a.v - b.v) || a.n - b.n;
      }
      if (!a.t || !b.t) return !a.t - !b.t || a.n - b.n; // what is empty comes last, either way
      return sign * a.t.localeCompare(b.t, "en", { numeric: true }) || a.n - b.n;
    });
    return keyed.map((one) => one.row);
  }

  /** Put the rows in order; those of one method under its first where they are folded. */
  lay() {
    const kept = this.ordered().filter((row) => this.kept.has(row));
    const groups = new Map();
    kept.forEach((row, n) => {
      const key = this.folded ? row.dataset.method : n;
      if (!groups.has(key)) groups.set(key, []);
      groups.get(key).push(row);
    });
    for (const row of this.rows) {
      row.hidden = true;
      row.classList.remove("variant");
      row.querySelector(".fold")?.remove();
    }
    const body = this.table.tBodies[0];
    for (const [key, [leader, ...others]] of groups) {
      const open = this.open.has(key);
      this.put(body, leader);
      if (this.folded && others.length) leader.querySelector(".who").append(this.foldButton(key, others.length, open));
      for (const row of others) {
        row.classList.add("variant");
        this.put(body, row, !open);
      }
    }
    body.append(...this.rows.filter((row) => !this.kept.has(row)));
    this.tell();
  }

  put(body, row, hidden = false) {
    row.hidden = hidden;
    body.append(row);
    if (row.inline) {
      body.append(row.inline);
      row.inline.hidden = hidden;
    }
  }

  foldButton(method, count, open) {
    const what = `${open ? "hide" : "show"} ${count} more of ${method}`;
    const flip = () => {
      open ? this.open.delete(method) : this.open.add(method);
      this.lay();
      this.rows.find((row) => row.dataset.method === method && row.querySelector(".fold"))?.querySelector(".fold").focus();
    };
    return make("button", { class: "fold", type: "button", "aria-expanded": String(open), "aria-label": what, title: what, onclick: flip },
      open ? `− ${count}` : `+ ${count}`);
  }

  // ---- what is known of a row

  readyRows() {
    for (const row of this.rows) {
      const more = document.getElementById(`${row.id}-more`);
      if (!more) continue;
      row.more = { article: more, home: make("span", { hidden: true }) };
      more.before(row.more.home);
      const name = this.text(row, 0);
      const button = make("button", { class: "open", type: "button", "aria-expanded": "false", "aria-label": `more of ${name}`, onclick: () => this.flip(row) }, "▸");
      row.querySelector(".who").prepend(button);
      row.cells[0].querySelector("a").addEventListener("click", (event) => {
        event.preventDefault();
        this.flip(row);
      });
    }
  }

  flip(row) {
    const button = row.querySelector(".open");
    if (row.inline) {
      row.more.home.after(row.more.article);
      row.inline.remove();
      row.inline = null;
    } else {
      const span = row.cells.length;
      row.inline = make("tr", { class: "inline" }, make("td", { colspan: span }, row.more.article));
      row.after(row.inline);
    }
    button.textContent = row.inline ? "▾" : "▸";
    button.setAttribute("aria-expanded", Boolean(row.inline));
  }

  // ---- controls above the table

  readyControls() {
    const place = this.panel.querySelector("[data-controls]");
    const example = this.titles.includes("params") ? ": lora params<1e5" : "";
    const filter = make("input", {
      type: "search", placeholder: `filter${example}`, "aria-label": "Filter rows: words, or a column, < > = and a number",
      title: "Words that a row must hold; or a column without spaces, one of < <= > >= = and a number, as params<1e5",
      oninput: (event) => this.filter(event.target.value),
    });
    this.said = make("span", { class: "said", role: "status" });
    place.append(filter);
    if (this.folds) place.append(this.check("fold variants", true, (on) => { this.folded = on; this.lay(); }));
    if (this.table.querySelector("td[style]")) {
      place.append(this.check("shading", true, (on) => this.table.classList.toggle("plain", !on)));
    }
    if ([...this.table.querySelectorAll("td.t")].some((cell) => cell.textContent.trim().length > 32)) {
      this.table.classList.add("oneline");
      place.append(this.check("long texts in full", false, (on) => this.table.classList.toggle("oneline", !on)));
    }
    place.append(this.picker());
    place.append(make("button", { type: "button", onclick: () => this.download() }, "CSV of what is shown"));
    if (this.heads.some((head) => head.dataset.role === "score")) place.append(this.paperButton());
    place.append(this.said);
  }

  check(title, on, act) {
    const box = make("input", { type: "checkbox", checked: on, onchange: (event) => act(event.target.checked) });
    return make("label", {}, box, title);
  }

  picker() {
    const groups = new Map();
    this.heads.forEach((head, at) => {
      if (at === 0) return;
      if (!groups.has(head.dataset.group)) groups.set(head.dataset.group, []);
      groups.get(head.dataset.group).push(at);
    });
    const inside = make("div");
    for (const [group, columns] of groups) {
      const boxes = columns.map((at) => this.check(this.titles[at], !("off" in this.heads[at].dataset), (on) => {
        this.showColumn(at, on);
        sum();
      }));
      const inputs = boxes.map((box) => box.firstChild);
      const all = this.check(group, true, (on) => {
        inputs.forEach((input, n) => { input.checked = on; this.showColumn(columns[n], on); });
      });
      const sum = () => {
        const count = inputs.filter((input) => input.checked).length;
        all.firstChild.checked = count === inputs.length;
        all.firstChild.indeterminate = count > 0 && count < inputs.length;
      };
      sum();
      inside.append(make("fieldset", {}, make("legend", {}, all), ...boxes));
    }
    const picker = make("details", { class: "picker" }, make("summary", {}, "columns"), inside);
    document.addEventListener("click", (event) => { if (!picker.contains(event.target)) picker.open = false; });
    picker.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      picker.open = false;
      picker.firstChild.focus();
    });
    return picker;
  }

  showColumn(at, on) {
    this.heads[at].hidden = !on;
    for (const row of this.rows) row.cells[at].hidden = !on;
    this.tell();
  }

  /** Keep the rows that hold every word and meet every condition of an expression. */
  filter(text) {
    const tests = [];
    const wrong = [];
    const joined = text.trim().replace(/\s*(<=|>=|<|>|=)\s*/g, "$1");
    for (const token of joined.split(/\s+/).filter(Boolean)) {
      const found = token.match(/^([^<>=]+)(<=|>=|<|>|=)(.*)$/);
      const [, name, sign, given] = found || [];
      const at = found ? this.columnOf(name) : -1;
      const holdsWord = (row) => this.words(row).includes(token.toLowerCase());
      if (!found || (at < 0 && this.rows.some(holdsWord))) { // an option, as rank=16, is a word
        tests.push(holdsWord);
        continue;
      }
      const number = Number(given);
      if (at < 0) wrong.push(`no one column is called ${name}`);
      else if (given === "" || Number.isNaN(number)) {
        if (sign === "=" && given) tests.push((row) => plain(this.text(row, at)) === plain(given));
        else wrong.push(`${name}${sign} needs a number`);
      } else {
        const holds = { "<": (v) => v < number, "<=": (v) => v <= number, ">": (v) => v > number, ">=": (v) => v >= number, "=": (v) => v === number }[sign];
        tests.push((row) => {
          const value = this.value(row, at);
          return value !== null && holds(value);
        });
      }
    }
    this.wrong = wrong.join("; ");
    if (!wrong.length) this.kept = new Set(this.rows.filter((row) => tests.every((test) => test(row))));
    this.lay();
  }

  words(row) {
    return [...row.cells].map((cell, at) => this.text(row, at)).join(" ").toLowerCase();
  }

  /** The column of this key or title, or the only one that begins so; -1 where there is none. */
  columnOf(name) {
    const asked = plain(name);
    const called = this.heads.map((head, at) => [plain(head.dataset.key), plain(this.titles[at])]);
    const exact = called.findIndex((names) => names.includes(asked));
    if (exact >= 0) return exact;
    const begun = called.map((names, at) => (names.some((one) => one.startsWith(asked)) ? at : -1)).filter((at) => at >= 0);
    const result = begun.filter((at) => this.heads[at].dataset.group === "Result");
    return begun.length === 1 ? begun[0] : result.length ? result[0] : -1;
  }

  tell() {
    const shown = this.rows.filter((row) => !row.hidden).length;
    const folded = this.kept.size - shown;
    this.said.classList.toggle("wrong", Boolean(this.wrong));
    const off = this.heads.filter((head) => head.hidden).length;
    let more = `${folded ? `, ${folded} folded` : ""}${off ? `; ${off} columns hidden` : ""}`;
    const marks = new Set([...this.kept].map((row) => row.dataset.mark));
    if (this.sorted && marks.size > 1) more += "; groups made unlike are sorted together, as asked";
    this.said.textContent = this.wrong || `${this.kept.size} of ${this.rows.length} row${this.rows.length === 1 ? "" : "s"}${more}`;
  }

  // ---- CSV

  csv() {
    const columns = this.heads.map((head, at) => at).filter((at) => !this.heads[at].hidden);
    const lines = [columns.map((at) => this.titles[at])];
    for (const row of this.table.tBodies[0].rows) {
      if (!row.hidden && !row.classList.contains("inline")) lines.push(columns.map((at) => this.text(row, at)));
    }
    return lines.map((line) => line.map(field).join(",") + "\n").join("");
  }

  download() {
    const place = URL.createObjectURL(new Blob(["\ufeff", this.csv()], { type: "text/csv;charset=utf-8" }));
    const name = this.panel.querySelector("h2").textContent.toLowerCase().replace(/[^a-z0-9]+/g, "_");
    make("a", { href: place, download: `${name}.csv` }).click();
    setTimeout(() => URL.revokeObjectURL(place), 1000);
  }

  // ---- as a paper has it

  paperButton() {
    return make("button", { type: "button", onclick: (event) => this.paper(event.target) }, "paper view");
  }

  /** White, the table with scores alone and the best bold, and its chart; Escape leads back. */
  paper(button) {
    const columns = this.heads.map((head, at) => at);
    const hidden = columns.filter((at) => this.heads[at].hidden);
    const marks = [...new Set([...this.kept].map((row) => row.dataset.mark))].filter(Boolean);
    const folded = this.folded;
    if (marks.length > 1) this.folded = false; // rows of unlike groups stand apart
    this.lay();
    for (const at of columns) {
      const { group, role, key } = this.heads[at].dataset;
      this.showColumn(at, at === 0 || (role === "score" && this.rows.some((row) => this.value(row, at) !== null)) || (group === "Cost" && key.startsWith("parameters")));
    }
    const added = this.sorted ? [] : this.groupLines(marks);
    for (const mark of marks.length ? marks : [undefined]) this.boldBest(mark);
    const leave = (event) => {
      if (event.type === "keydown" && event.key !== "Escape") return;
      removeEventListener("keydown", leave);
      delete document.documentElement.dataset.paper;
      this.panel.classList.remove("paper");
      this.table.inert = false;
      bar.remove();
      added.forEach((line) => line.remove());
      this.table.querySelectorAll(".top").forEach((cell) => cell.classList.remove("top"));
      for (const at of columns) this.showColumn(at, !hidden.includes(at));
      this.folded = folded;
      this.lay();
      button.focus();
    };
    const back = make("button", { type: "button", onclick: leave }, "leave paper view");
    const bar = make("div", { class: "leave" }, back, make("button", { type: "button", onclick: () => print() }, "print"));
    addEventListener("keydown", leave);
    this.panel.prepend(bar);
    this.panel.classList.add("paper");
    this.table.inert = true; // it is there to be looked at
    document.documentElement.dataset.paper = this.panel.id;
    back.focus();
  }

  /** A line above the first row of each group, which says how its rows were made. */
  groupLines(marks) {
    const at = this.heads.findIndex((head) => head.dataset.key === "group");
    return marks.length < 2 ? [] : marks.map((mark) => {
      const first = [...this.table.tBodies[0].rows].find((row) => row.dataset.mark === mark && this.kept.has(row));
      const shown = this.heads.filter((head) => !head.hidden).length;
      const line = make("tr", { class: "of-group" }, make("td", { colspan: shown }, `${mark}: ${first.cells[at].title}`));
      first.before(line);
      return line;
    });
  }

  /** The best of each column of scores among rows of one group; what is printed equal is as good. */
  boldBest(mark) {
    const rows = this.rows.filter((row) => !row.hidden && (mark === undefined || row.dataset.mark === mark));
    this.heads.forEach((head, at) => {
      const there = rows.filter((row) => this.value(row, at) !== null);
      if (head.dataset.role !== "score" || there.length < 2) return;
      const sign = "lower" in head.dataset ? -1 : 1;
      const best = there.reduce((a, b) => (sign * this.value(b, at) > sign * this.value(a, at) ? b : a));
      const shown = (row) => row.cells[at].firstChild.textContent.trim();
      there.filter((row) => shown(row) === shown(best)).forEach((row) => row.cells[at].classList.add("top"));
    });
  }

  choose(name) {
    this.rows.forEach((row, n) => row.classList.toggle("chosen", this.names[n] === name));
  }
}

/** A text as a field of a CSV file, which no spreadsheet takes for a formula. */
function field(text) {
  const number = /^[+-]?[\d.,]+([eE][+-]?\d+)?$/.test(text);
  const safe = /^[=+\-@\t\r]/.test(text) && !number ? `'${text}` : text;
  return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

// ---- accuracy against cost ----------------------------------------------------------------------

class Plot {
  constructor(board) {
    this.board = board;
    this.place = board.panel.querySelector("[data-plot]");
    const of = (role) => board.heads.map((head, at) => at).filter((at) => board.heads[at].dataset.role === role && this.points(at) > 1);
    const [scores, costs] = [of("score"), of("cost")];
    if (!this.place || !scores.length || !costs.length) return;
    this.place.hidden = false;
    const redraw = () => this.draw();
    this.y = this.select(scores, "score", redraw);
    this.x = this.select(costs, "against", redraw);
    this.one = make("select", { onchange: redraw }, make("option", { value: "" }, "none"),
      ...[...board.names].sort((a, b) => a.localeCompare(b, "en")).map((name) => make("option", { value: name }, name)));
    const marks = [...new Set(board.rows.map((row) => row.dataset.mark))].filter(Boolean);
    this.group = make("select", { onchange: redraw }, ...marks.map((mark) => make("option", { value: mark }, `group ${mark}`)), make("option", { value: "" }, "all groups together"));
    const which = marks.length ? [make("label", {}, "rows", this.group)] : [];
    const axes = make("div", { class: "axes" }, this.y, this.x, ...which, make("label", {}, "highlight", this.one));
    this.out = make("div");
    this.place.append(make("h3", {}, "Score against cost"), axes, this.out);
    this.draw();
    let width = this.place.clientWidth;
    addEventListener("resize", () => {
      if (this.place.clientWidth !== width) this.draw();
      width = this.place.clientWidth;
    });
  }

  points(at) {
    return this.board.rows.filter((row) => this.board.value(row, at) !== null).length;
  }

  select(columns, title, act) {
    const options = columns.map((at) => make("option", { value: at }, this.board.titles[at]));
    return make("label", {}, title, make("select", { onchange: act }, ...options));
  }

  draw() {
    const [xAt, yAt] = [this.x, this.y].map((label) => Number(label.querySelector("select").value));
    const board = this.board;
    board.choose(this.one.value);
    const mark = this.group.value;
    const rows = board.rows.filter((row) => !mark || row.dataset.mark === mark);
    const points = rows
      .map((row) => ({ name: board.text(row, 0), x: board.value(row, xAt), y: board.value(row, yAt), tx: board.text(row, xAt), ty: board.text(row, yAt) }))
      .filter((point) => point.x !== null && point.y !== null);
    const without = rows.length - points.length;
    const lower = "lower" in board.heads[yAt].dataset;
    const gain = (point) => (lower ? -point.y : point.y);
    const front = points
      .filter((p) => !points.some((q) => (q.x < p.x && gain(q) >= gain(p)) || (q.x <= p.x && gain(q) > gain(p))))
      .sort((a, b) => a.x - b.x);
    const W = Math.max(300, Math.min(900, this.place.clientWidth));
    const [H, L, R, T, B] = [W < 500 ? 320 : 430, 52, 16, 14, 46];
    const sx = scale(points.map((p) => p.x), L, W - R, true);
    const sy = scale(points.map((p) => p.y), H - B, T, false);
    const label = `${board.titles[yAt]} against ${board.titles[xAt]}: ${points.length} rows`;
    const svg = make("svg", { viewBox: `0 0 ${W} ${H}`, width: W, height: H, role: "group", "aria-label": label });
    for (const [value, at] of sy.ticks) {
      svg.append(make("line", { class: "grid", x1: L, x2: W - R, y1: at, y2: at }), make("text", { class: "tick", x: L - 8, y: at + 4, "text-anchor": "end" }, value));
    }
    for (const [value, at] of W < 500 && sx.ticks.length > 4 ? sx.ticks.filter((_, n) => n % 2 === 0) : sx.ticks) {
      svg.append(make("line", { class: "grid", x1: at, x2: at, y1: T, y2: H - B }), make("text", { class: "tick", x: at, y: H - B + 17, "text-anchor": "middle" }, value));
    }
    const steps = front.map((p, n) => (n ? `H${sx.at(p.x)}V${sy.at(p.y)}` : `M${sx.at(p.x)} ${sy.at(p.y)}`)).join("");
    svg.append(make("path", { class: "front", d: `${steps}H${W - R}` }));
    const taken = [];
    const ranked = [...points].sort((a, b) => this.rank(a, front) - this.rank(b, front) || gain(b) - gain(a));
    for (const point of ranked) {
      const state = point.name === this.one.value ? "chosen" : front.includes(point) ? "best" : "";
      const [x, y] = [sx.at(point.x), sy.at(point.y)];
      const said = `${point.name}: ${board.titles[yAt]} ${point.ty}, ${board.titles[xAt]} ${point.tx}${state === "best" ? ", on the Pareto front" : ""}`;
      svg.append(make("circle", { class: state, cx: x, cy: y, r: state ? 6 : 4.5, tabindex: 0, role: "img", "aria-label": said }, make("title", {}, said)));
      const short = point.name.length > 26 ? `${point.name.slice(0, 25)}…` : point.name;
      const width = short.length * 6.6;
      const left = x + 9 + width > W - R;
      const box = left ? [x - 9 - width, y - 8, x - 9, y + 8] : [x + 9, y - 8, x + 9 + width, y + 8];
      const free = !taken.some((t) => box[0] < t[2] && box[2] > t[0] && box[1] < t[3] && box[3] > t[1]);
      const dots = points.some((p) => p !== point && sx.at(p.x) > box[0] - 4 && sx.at(p.x) < box[2] + 4 && Math.abs(sy.at(p.y) - y) < 9);
      if (state === "chosen" || (free && (state || !dots))) {
        taken.push(box);
        svg.append(make("text", { class: state, x: left ? x - 9 : x + 9, y: y + 4, "text-anchor": left ? "end" : "start" }, short));
      }
    }
    svg.append(
      make("text", { x: (L + W - R) / 2, y: H - 8, "text-anchor": "middle" }, `${board.titles[xAt]}${sx.log ? " (logarithmic)" : ""}`),
      make("text", { x: 14, y: (T + H - B) / 2, "text-anchor": "middle", transform: `rotate(-90 14 ${(T + H - B) / 2})` }, board.titles[yAt]),
    );
    const unlike = !mark && this.group.options.length > 1 ? " Rows of groups that were made unlike stand together, as asked." : "";
    const note = `Blue, on the dashed line: no other row is as good at less cost.${without ? ` ${without} of ${rows.length} rows lack one of the two numbers.` : ""}${unlike}`;
    this.out.replaceChildren(svg, make("p", { class: "about" }, note));
  }

  rank(point, front) {
    return point.name === this.one.value ? 0 : front.includes(point) ? 1 : 2;
  }
}

/** From values to pixels, with ticks; logarithmic where they differ in size and that is allowed. */
function scale(values, from, to, mayLog) {
  const positive = values.filter((v) => v > 0);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const least = Math.min(...positive);
  const log = mayLog && positive.length > 0 && low >= 0 && high / least > 30;
  if (log) {
    const zero = low === 0;
    const [a, b] = [Math.log10(least) - 0.15, Math.log10(high) + 0.15];
    const start = zero ? from + (to - from) * 0.08 : from;
    const at = (v) => (v === 0 ? from + (to - from) * 0.02 : start + ((Math.log10(v) - a) / (b - a)) * (to - start));
    const ticks = zero ? [["0", at(0)]] : [];
    for (let p = Math.ceil(a); p <= Math.floor(b); p += 1) ticks.push([brief(10 ** p), at(10 ** p)]);
    return { at, ticks, log };
  }
  const pad = (high - low || Math.abs(high) || 1) * 0.07;
  const [a, b] = [low - pad, high + pad];
  const at = (v) => from + ((v - a) / (b - a)) * (to - from);
  const rough = (b - a) / 6;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
  const digits = Math.max(0, -Math.floor(Math.log10(step)));
  const ticks = [];
  for (let n = Math.ceil(a / step); n * step <= b; n += 1) ticks.push([step >= 1 ? brief(n * step) : (n * step).toFixed(digits), at(n * step)]);
  return { at, ticks, log };
}

function brief(value) {
  const sizes = [[1e9, "G"], [1e6, "M"], [1e3, "k"]];
  const found = sizes.find(([size]) => Math.abs(value) >= size);
  return found ? `${Number((value / found[0]).toPrecision(3))}${found[1]}` : `${Number(value.toPrecision(3))}`;
}

// ---- two rows against each other ----------------------------------------------------------------

function readyDuel(place) {
  const table = place.parentElement.querySelector(".matrix");
  const names = [...table.tBodies[0].rows].map((row) => row.cells[0].textContent.trim());
  const select = (title, chosen) => make("label", {}, title, make("select", { onchange: () => say() },
    ...names.map((name, n) => make("option", { value: n, selected: n === chosen }, name))));
  const [first, second] = [select("compare", 0), select("with", 1)];
  const out = make("output");
  const say = () => {
    const [a, b] = [first, second].map((label) => Number(label.querySelector("select").value));
    const [one, other] = a < b ? [a, b] : [b, a]; // the better mean comes first
    const said = table.tBodies[0].rows[one].cells[other + 1].title;
    out.textContent = a === b ? "Choose two rows." : `${names[one]} against ${names[other]}: ${said}.`;
  };
  table.addEventListener("click", (event) => {
    const cell = event.target.closest("td[style]");
    if (!cell) return;
    first.querySelector("select").value = cell.parentElement.sectionRowIndex;
    second.querySelector("select").value = cell.cellIndex - 1;
    say();
  });
  place.append(first, second, out);
  say();
}

// ---- light and dark -----------------------------------------------------------------------------

function readyTheme() {
  const root = document.documentElement;
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);
  const button = make("button", { class: "theme", type: "button" });
  const tell = () => { button.textContent = dark() ? "light" : "dark"; button.setAttribute("aria-label", `switch to ${button.textContent} colours`); };
  button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; tell(); });
  tell();
  document.querySelector("header").append(button);
}

readyTheme();
for (const panel of document.querySelectorAll(".panel")) new Plot(new Board(panel));
document.querySelectorAll("[data-duel]").forEach(readyDuel);
