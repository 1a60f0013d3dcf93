/** Names of systemd units as `systemctl` takes them, with their suffix; never an option of it. */
export const UNIT_NAME_PATTERN =
  '^[A-Za-z0-9_][A-Za-z0-9:_.\\\\@-]{0,200}\\.(service|socket|target|timer|path|mount|slice)$';
