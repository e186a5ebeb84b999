"use strict";
(() => {
  const all = (what, where = document) => [...where.querySelectorAll(what)];
  const data = () => JSON.parse(document.getElementById("data").textContent);

  // Files go out as blobs that the page makes itself: no request leaves it.
  const save = (name, kind, text) => {
    const address = URL.createObjectURL(new Blob([text], { type: kind }));
    const link = document.createElement("a");
    link.href = address;
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
  };

  const key = (cell) => cell.dataset.k ?? cell.textContent;
  const titles = (table) => all("thead th", table).map((head) => head.textContent.trim());
  const values = (table) => all("tbody tr", table).map((row) => [...row.cells].map(key));
  const kinds = (table) => all("button.sort", table).map((button) => button.dataset.kind);

  // A leading =, +, - or @ would be run by a spreadsheet, unless it begins a number.
  const quoted = (text) => {
    const safe = /^[=+@\t\r-]/.test(text) && !Number.isFinite(Number(text)) ? "'" + text : text;
    return /[",\n\r]/.test(safe) ? '"' + safe.replaceAll('"', '""') + '"' : safe;
  };
  const csv = (table) =>
    [titles(table), ...values(table)].map((row) => row.map(quoted).join(",")).join("\r\n") + "\r\n";
  const json = (table) => {
    const names = titles(table);
    const kind = kinds(table);
    const rows = values(table).map((row) =>
      Object.fromEntries(row.map((v, i) => [names[i], v === "" ? null : kind[i] === "number" ? Number(v) : v]))
    );
    return JSON.stringify({ caption: table.caption.textContent, rows }, null, 1) + "\n";
  };

  for (const button of all("button.save")) {
    button.addEventListener("click", () => {
      const figure = button.closest("figure");
      const table = figure.querySelector("table");
      const form = button.dataset.form;
      if (form === "csv") save(figure.id + ".csv", "text/csv", csv(table));
      else save(figure.id + ".json", "application/json", json(table));
    });
    button.setAttribute("aria-label", button.textContent + " of " + button.closest("figure").querySelector("h3").textContent);
  }
  document.getElementById("all").addEventListener("click", () => {
    save("report.json", "application/json", JSON.stringify(data(), null, 1) + "\n");
  });

  // Sorting: up, down, as it was. What has no value stays last.
  const order = new Intl.Collator(undefined, { numeric: true });
  const compare = (kind, a, b) => (kind === "number" ? Number(a) - Number(b) : order.compare(a, b));
  for (const table of all("table")) {
    const body = table.tBodies[0];
    const original = [...body.rows];
    const heads = all("thead th", table);
    heads.forEach((head, column) => {
      const button = head.querySelector("button");
      button.addEventListener("click", () => {
        const before = head.getAttribute("aria-sort");
        const next = before === "ascending" ? "descending" : before === "descending" ? null : "ascending";
        for (const other of heads) other.removeAttribute("aria-sort");
        if (next === null) {
          body.append(...original);
          return;
        }
        head.setAttribute("aria-sort", next);
        const sign = next === "ascending" ? 1 : -1;
        const of = (row) => key(row.cells[column]);
        const full = original.filter((row) => of(row) !== "");
        full.sort((a, b) => sign * compare(button.dataset.kind, of(a), of(b)));
        body.append(...full, ...original.filter((row) => of(row) === ""));
      });
    });
  }

  // One file at a time; without this script all are there, one after the other.
  const panels = all(".panel");
  const choice = document.querySelector(".choice");
  const show = (letter) => {
    for (const panel of panels) panel.hidden = panel.dataset.letter !== letter;
    const input = all("input", choice).find((one) => one.value === letter);
    if (input) input.checked = true;
  };
  const wanted = () => panels.find((panel) => "#" + panel.id === location.hash);
  if (choice) {
    choice.hidden = false;
    show((wanted() || panels.find((panel) => panel.dataset.letter === choice.dataset.first) || panels[0]).dataset.letter);
    choice.addEventListener("change", (event) => show(event.target.value));
    addEventListener("hashchange", () => {
      const panel = wanted();
      if (!panel) return;
      show(panel.dataset.letter);
      panel.scrollIntoView();
    });
    if (wanted()) wanted().scrollIntoView();
  }
  document.documentElement.dataset.ready = "yes";
})();
