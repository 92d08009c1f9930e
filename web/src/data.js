// The data of the page: see loadgen/report/page_data.py for its form.

const UNKNOWN = 0xffffffff;

export async function readData(base64) {
  const packed = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const blob = new Uint8Array(await new Response(stream).arrayBuffer());
  const length = new DataView(blob.buffer).getUint32(0, true);
  const data = JSON.parse(new TextDecoder().decode(blob.subarray(4, 4 + length)));
  const columns = blob.subarray(4 + length);
  data.runs.forEach((run, place) => {
    // Names are long; in charts of several runs a letter stands for each.
    run.letter = data.runs.length > 1 ? letter(place) : "";
    run.levels.forEach((level, index) => {
      level.run = run;
      level.index = index;
      // A search and rounds measure a load more than once.
      const before = run.levels.slice(0, index).filter((other) => other.name === level.name).length;
      level.key = (run.letter ? `${run.letter}/` : "") + level.name + (before ? `~${before + 1}` : "");
      level.valid = level.summary.verdict.status === "VALID";
      level.requests = Object.fromEntries(
        Object.entries(level.requests).map(([name, place]) => [name, column(columns, place)]),
      );
    });
  });
  return data;
}

const letter = (place) => (place < 26 ? String.fromCharCode(65 + place) : `R${place + 1}`);

/** A column as Float64Array, NaN where a value is unknown. */
function column(columns, { at, count, parts }) {
  const values = new Float64Array(count);
  for (let i = 0; i < count; i++) {
    const value =
      columns[at + i] +
      columns[at + count + i] * 0x100 +
      columns[at + 2 * count + i] * 0x10000 +
      columns[at + 3 * count + i] * 0x1000000;
    values[i] = value === UNKNOWN ? NaN : value / parts;
  }
  return values;
}

export const MEASURED = 1;
export const FAILED = 2;
export const OFFERED = 4;
