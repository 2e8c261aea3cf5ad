"use strict";
(() => {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const setTheme = (dark) => {
    root.dataset.theme = dark ? "dark" : "light";
    button.textContent = dark ? "Light" : "Dark";
    button.setAttribute("aria-pressed", String(dark));
  };
  setTheme(matchMedia("(prefers-color-scheme: dark)").matches);
  button.addEventListener("click", () => setTheme(root.dataset.theme !== "dark"));

  const facts = JSON.parse(document.getElementById("facts").textContent);
  const card = document.getElementById("card");
  const tenantOf = (replica) => {
    const known = facts.replicas[replica];
    return (known && facts.deployments[known[0]] || {}).tenant || "";
  };
  const telling = (replica, gpu) => {
    const lines = [];
    const known = facts.replicas[replica];
    if (known) {
      const [deployment, place, how, use] = known;
      const d = facts.deployments[deployment] || {};
      lines.push(`${replica} (${d.tenant || "default"})`, place, how, use && `takes ${use}`,
        d.rate && `${deployment}: asked ${d.rate}, room for ${d.room}`,
        d.ttft && `TTFT ${d.ttft}`, d.tpot && `TPOT ${d.tpot}`);
    }
    if (gpu) {
      const [memory, bandwidth, compute] = gpu.dataset.use.split(",");
      lines.push(`${gpu.dataset.gpu}: memory ${memory} %, bandwidth ${bandwidth} %, compute ${compute} %`);
    }
    return lines.filter(Boolean).join("\n");
  };
  const show = (target, x, y) => {
    const gpu = target.closest(".gpu");
    const told = target.closest("[data-told]");
    if (!gpu && !told) { card.hidden = true; return; }
    const own = target.closest("[data-r]");
    const pieces = own ? [own] : gpu ? [...gpu.querySelectorAll("[data-r]")] : [];
    card.textContent = told ? told.dataset.told : [...pieces.map((p) => telling(p.dataset.r)), telling(null, gpu)].join("\n");
    card.hidden = false;
    const box = card.getBoundingClientRect();
    card.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - box.width - 8))}px`;
    card.style.top = `${Math.max(4, Math.min(y + 14, innerHeight - box.height - 8))}px`;
  };
  document.addEventListener("mousemove", (e) => show(e.target, e.clientX, e.clientY));
  document.addEventListener("focusin", (e) => {
    const box = e.target.getBoundingClientRect();
    show(e.target, box.left + 40, box.bottom);
  });
  document.addEventListener("keydown", (e) => {
    if (e.key === "Escape") card.hidden = true;
    const gpu = document.activeElement.closest && document.activeElement.closest(".gpu");
    if (gpu && (e.key === "ArrowDown" || e.key === "ArrowUp")) {
      const all = [...document.querySelectorAll(".gpu")];
      const next = all[all.indexOf(gpu) + (e.key === "ArrowDown" ? 1 : -1)];
      if (next) { next.focus(); e.preventDefault(); }
    }
  });

  const search = document.getElementById("search");
  let waiting = 0;
  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = (text) => words.every((word) => text.includes(word));
    let matches = 0;
    for (const row of document.querySelectorAll(".sortable tbody tr")) {
      row.hidden = !fits(row.textContent.toLowerCase());
      matches += !row.hidden;
    }
    const told = matches === 1 ? "1 row" : `${matches || "no"} rows`;
    document.getElementById("matches").textContent = words.length ? told : "";
    for (const gpu of document.querySelectorAll(".gpu")) {
      const whole = gpu.getAttribute("aria-label").toLowerCase();
      const pieces = [...gpu.querySelectorAll("[data-r]")];
      const found = pieces.map((p) => fits(`${gpu.dataset.gpu} ${p.dataset.r} ${tenantOf(p.dataset.r)}`.toLowerCase()));
      const any = found.includes(true);
      gpu.classList.toggle("dim", !any && !fits(whole));
      pieces.forEach((p, i) => p.classList.toggle("dim", any && !found[i]));
    }
  };
  search.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(filter, 120); });

  for (const table of document.querySelectorAll(".sortable")) {
    table.querySelectorAll("th").forEach((head, column) => {
      head.tabIndex = 0;
      const sort = () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const body = table.tBodies[0];
        const key = (row) => {
          const cell = row.cells[column];
          const text = cell.dataset.v !== undefined ? cell.dataset.v : cell.textContent.replace(/,/g, "");
          const value = parseFloat(text);
          return Number.isNaN(value) ? cell.textContent.trim().toLowerCase() : value;
        };
        const compare = (a, b) => {
          const [x, y] = [key(a), key(b)];
          if (typeof x === typeof y) return x < y ? -1 : x > y ? 1 : 0;
          return typeof x === "number" ? -1 : 1;
        };
        [...body.rows].sort(compare).forEach((row, i, rows) => body.append(down ? rows[rows.length - 1 - i] : row));
      };
      head.addEventListener("click", sort);
      head.addEventListener("keydown", (e) => { if (e.key === "Enter" || e.key === " ") { sort(); e.preventDefault(); } });
    });
  }
})();
