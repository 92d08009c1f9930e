// Numbers for people, as loadgen/units.py writes them.

export const ms = (seconds) => {
  if (seconds === null || seconds === undefined || Number.isNaN(seconds)) return "n/a";
  const value = seconds * 1e3;
  return digits(value, Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : Math.abs(value) >= 1 ? 2 : 3);
};

export const digits = (value, count) => value.toLocaleString("en-US", { minimumFractionDigits: count, maximumFractionDigits: count });

export const amount = (value) => {
  if (value === null || value === undefined || Number.isNaN(value)) return "n/a";
  const size = Math.abs(value);
  return digits(value, size >= 100 || value === 0 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3);
};

export const percent = (share, count = 1) => (share === null || share === undefined ? "n/a" : `${digits(share * 100, count)} %`);

export const whole = (value) => (value === null || value === undefined ? "n/a" : value.toLocaleString("en-US"));

/** A chance, never 0 nor 100 %: no sample shows that. */
export const chance = (share) => (share < 0.001 ? "<0.1 %" : share > 0.999 ? ">99.9 %" : percent(share));

/** "12 .. 15", "12 or more". */
export const interval = (found, form = amount) =>
  !found ? "n/a" : found[1] === null ? `${form(found[0])} or more` : `${form(found[0])} .. ${form(found[1])}`;

export const money = (value) => (value >= 1000 ? digits(value, 0) : value >= 1 ? digits(value, 2) : String(Number(value.toPrecision(3))));

/** "3.20 .. 2.90", "3.20 at most": the first is what is planned with. */
export const moneys = (found) =>
  !found ? "n/a" : found[1] === null ? `${money(found[0])} at most` : `${money(found[0])} .. ${money(found[1])}`;
