// A table of coloured cells that is walked through with the arrow keys.

const MANY_COLUMNS = 12;

class Grid {
  constructor(element, { onPick, onLook }) {
    this.element = element;
    this.onPick = onPick;
    this.onLook = onLook;
    this.cells = [];
    this.place = [0, 0];
    element.addEventListener("click", (event) => this.#at(event, (row, column) => this.pick(row, column)));
    element.addEventListener("focusin", (event) => this.#at(event, (row, column) => this.#look(row, column)));
    element.addEventListener("pointerover", (event) =>
      this.#at(event, (row, column) => this.onLook?.(row, column)),
    );
    element.addEventListener("keydown", (event) => this.#key(event));
  }

  // rows and columns: {name, title}; values[row][column]: number or null.
  show({ label, rows, columns, values, colour, words, hasNumbers }) {
    const head = make("tr", { role: "row" }, make("td"));
    for (const column of columns) {
      head.append(make("th", { role: "columnheader", scope: "col", title: column.title }, column.name));
    }
    this.cells = values.map((line, row) =>
      line.map((value, column) => this.#cell({ value, row, column, colour, words, hasNumbers })),
    );
    const body = this.cells.map((line, row) =>
      make("tr", { role: "row" }, make("th", { role: "rowheader", scope: "row", title: rows[row].title }, rows[row].name), ...line),
    );
    this.element.setAttribute("aria-label", label);
    this.element.classList.toggle("many", columns.length > MANY_COLUMNS);
    this.element.replaceChildren(make("thead", { role: "rowgroup" }, head), make("tbody", { role: "rowgroup" }, ...body));
    this.place = [Math.min(this.place[0], rows.length - 1), Math.min(this.place[1], columns.length - 1)];
    this.#cellAt(...this.place)?.setAttribute("tabindex", "0");
  }

  // Marks cells as chosen, and lets the keyboard start at the first of them.
  mark(places) {
    for (const cell of this.element.querySelectorAll('[aria-selected="true"]')) cell.setAttribute("aria-selected", "false");
    for (const [row, column] of places) this.#cellAt(row, column)?.setAttribute("aria-selected", "true");
    if (places.length) this.#rove(...places[0]);
  }

  pick(row, column) {
    this.#rove(row, column);
    this.onPick?.(row, column);
  }

  #cell({ value, row, column, colour, words, hasNumbers }) {
    const cell = make("td", {
      role: "gridcell", tabindex: "-1", "aria-selected": "false", "data-row": row, "data-column": column,
      "aria-label": words(row, column, value),
    });
    if (isNumber(value)) {
      const rgb = colour(value);
      cell.style.backgroundColor = css(rgb);
      cell.style.color = inkOn(rgb);
      // a hundred cells of nearly nothing would hide those that say something
      if (hasNumbers && (value === 0 || Math.abs(value) >= 0.005)) cell.textContent = tiny(value);
    } else {
      cell.classList.add("absent");
    }
    return cell;
  }

  #cellAt(row, column) {
    return this.cells[row]?.[column];
  }

  #at(event, act) {
    const cell = event.target.closest("[data-row]");
    if (cell) act(Number(cell.dataset.row), Number(cell.dataset.column));
  }

  #look(row, column) {
    this.#rove(row, column);
    this.onLook?.(row, column);
  }

  #rove(row, column) {
    this.#cellAt(...this.place)?.setAttribute("tabindex", "-1");
    this.place = [row, column];
    this.#cellAt(row, column)?.setAttribute("tabindex", "0");
  }

  #key(event) {
    const [row, column] = this.place;
    const last = [this.cells.length - 1, (this.cells[0]?.length ?? 1) - 1];
    const moves = {
      ArrowUp: [row - 1, column], ArrowDown: [row + 1, column],
      ArrowLeft: [row, column - 1], ArrowRight: [row, column + 1],
      Home: [row, 0], End: [row, last[1]], PageUp: [0, column], PageDown: [last[0], column],
    };
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.onPick?.(row, column);
    } else if (moves[event.key]) {
      event.preventDefault();
      const [toRow, toColumn] = moves[event.key].map((value, axis) => Math.min(last[axis], Math.max(0, value)));
      this.#cellAt(toRow, toColumn)?.focus();
    }
  }
}
