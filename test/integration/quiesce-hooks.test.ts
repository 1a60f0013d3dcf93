/** The hook of MySQL and MariaDB on a real MariaDB, and hooks as units of a real systemd. */
import { spawn } from 'node:child_process';
import fs from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { agentPaths, UNIT_NAME } from '../../agent/config.ts';
import { unitText } from '../../agent/service/unit.ts';
import type { HookReport } from '../../protocol/marks.ts';
import { CaptureLab, run, runAside, unable } from './capture.lab.ts';
import { keeper } from './keeper.lab.ts';
import {
  installMariaDb,
  MariaDb,
  noMariaDb,
  SERVER_USER,
  serverOptions,
  Writer,
} from './mariadb.lab.ts';
import { noSystemd, RealSystemd } from './real-systemd.lab.ts';
import { until } from './stream.lab.ts';

t.setTimeout(300_000);

const HOOK = join(import.meta.dirname, '../../agent/quiesce/hooks/60-mysql');
const HOOK_AGENT = join(import.meta.dirname, 'hook-agent.ts');

/** As linked by the user; a copy, because the sources need not be root's here. */
function switchOn(hooksDir: string) {
  fs.mkdirSync(hooksDir, { recursive: true });
  fs.copyFileSync(HOOK, join(hooksDir, '60-mysql'));
  fs.chmodSync(join(hooksDir, '60-mysql'), 0o755);
}

// Seen red with the hook as it was (it looked for the socket in one place, and gave no reason for 30 s), with its
// `kill -- -PID`, which dash does not know (the lock stayed for 90 s), and without the lock.
t.test(
  'MariaDB: InnoDB and MyISAM are whole at the point, and writers are held no longer than that',
  { skip: unable() || noMariaDb() },
  async (t) => {
    run('scripts/build-capture');
    const lab = new CaptureLab(t, 1500);
    fs.chmodSync(lab.dir, 0o755);
    const disk = lab.disk(192, { random: false });
    await runAside('mkfs.ext4', '-q', '-F', disk.dev);
    const first = lab.mount(disk.dev);
    await installMariaDb(join(first, 'my'));
    run('umount', first);
    run('cp', '--sparse=always', disk.file, disk.replica);
    const { kept, hook } = await keeper(t, lab, [disk]);
    const at = lab.mount(disk.dev);
    fs.mkdirSync(join(lab.dir, 'sock'), { mode: 0o777 });
    fs.chmodSync(join(lab.dir, 'sock'), 0o777);
    const socket = (name: string) => join(lab.dir, 'sock', name);
    const server = await MariaDb.serve(lab, join(at, 'my'), socket('source'));
    const writer = new Writer(lab, server);
    await writer.goesOn(50, 60_000);

    // The only difference is the hook: all that is written at the first point is on the disk, too.
    run('sync', '-f', at);
    const crash = await kept.takePoint('as it is', false);
    t.match(crash.point, { quiesced: false, reason: null });

    switchOn(join(lab.dir, 'hooks.d'));
    // While the lock is held nothing is committed: what is seen here is what the point has, neither less nor more.
    const seen = join(lab.dir, 'seen');
    const count = 'SELECT MAX(n) FROM lab.ledger; SELECT MAX(n) FROM lab.moved';
    hook(
      '70-look',
      `[ "$1" = post ] || mariadb ${server.client('-e', `'${count}'`).join(' ')} >${seen}`,
    );
    await writer.goesOn(50, 60_000);
    const acked = writer.acked;
    writer.longestMs(true);
    const rest = await kept.takePoint('at rest', true);
    t.match(rest.point, { quiesced: true, reason: null, fileSystems: [at] });
    t.match(
      [...rest.point!.hooks, ...rest.postHooks!].map(({ name, phase, outcome, text }) =>
        `${phase} ${name} ${outcome} ${text}`.trim(),
      ),
      [
        'pre 50-postgresql skipped',
        'pre 60-mysql done tables of 1 server(s) are flushed and locked',
        'pre 70-look done',
        'post 70-look done',
        'post 60-mysql done',
      ],
    );
    await writer.goesOn(50, 60_000);
    t.comment(
      `frozen for ${rest.point!.freezeMs?.toFixed(1)} ms, writers held for ${writer.longestMs().toFixed(0)} ms`,
    );
    t.ok(writer.longestMs() < 60_000, 'the lock ends with `post`');
    const locked = fs.readFileSync(seen, 'utf8').trim().split('\n').map(Number);
    t.ok(locked[0]! >= acked && locked[1]! >= acked, `${locked} rows, ${acked} were acknowledged`);

    const open = async (seq: number, name: string) => {
      const image = join(lab.dir, `${name}.img`);
      kept.cut(0, seq, image, disk.replica);
      const cutAt = lab.mount(image, '-o', 'loop');
      const replica = await MariaDb.serve(lab, join(cutAt, 'my'), socket(name));
      const rows = (table: string) =>
        replica.sql(`SELECT COUNT(*), MIN(n), MAX(n) FROM lab.${table}`).split('\t').map(Number);
      return { check: replica.sql('CHECK TABLE lab.moved'), rows, end: () => replica.stop() };
    };
    const before = await open(crash.seq!, 'crash');
    t.match(before.check, /hasn't closed the table properly/, 'without the hook it is marked');
    const [total, , last] = before.rows('ledger');
    t.equal(total, last, 'InnoDB is whole all the same');
    await before.end();
    const after = await open(rest.seq!, 'rest');
    t.equal(after.check, 'lab.moved\tcheck\tstatus\tOK', 'with it nothing is to be repaired');
    for (const [table, n] of [
      ['ledger', locked[0]],
      ['moved', locked[1]],
    ] as const) {
      t.same(after.rows(table), [n, 1, n], `${table}: all that was committed, no hole, no more`);
    }
    await after.end();

    // Behind a statement that runs for longer than the hook waits.
    server.sql('CREATE TABLE lab.slow (n INT) ENGINE=InnoDB');
    const slow = spawn('mariadb', server.client('-e', 'INSERT INTO lab.slow SELECT SLEEP(60)'), {
      stdio: 'ignore',
    });
    lab.later(() => slow.kill('SIGKILL'));
    const runs = 'SELECT ID FROM information_schema.PROCESSLIST WHERE INFO LIKE "%SLEEP(60)"';
    await until('the long statement', () => server.sql(`${runs} AND STATE = "User sleep"`));
    writer.longestMs(true);
    const behind = await kept.takePoint('behind', true);
    t.match(behind.point, {
      quiesced: false,
      freezeMs: null,
      reason: /^hook 60-mysql failed: the lock was not taken: ERROR .*(exceeded|interrupted)/i,
    });
    await writer.goesOn(5, 25_000);
    // Red without the limit within the session: 30 s, when the agent ended the hook.
    const held = writer.longestMs();
    t.ok(held > 3000 && held < 25_000, `writers waited for ${held.toFixed(0)} ms behind it`);
    t.ok(server.sql(runs), 'and that statement still runs');
    server.sql(`KILL ${server.sql(runs)}`);

    // The agent is killed while it holds the lock. Red without the look at its process: 90 s.
    const root = join(lab.dir, 'agent');
    switchOn(join(root, 'etc/understudy-agent/hooks.d'));
    const agent = spawn(process.execPath, [HOOK_AGENT, lab.dir, root, disk.dev], {
      stdio: ['ignore', 'ignore', 'inherit'],
    });
    lab.later(() => agent.kill('SIGKILL'));
    await until('the lock', () => fs.existsSync(join(lab.dir, 'held')), 60_000);
    t.throws(
      () => server.sql('SET lock_wait_timeout=1; INSERT INTO lab.slow VALUES (1)'),
      /Lock wait timeout/,
      'nothing can be written',
    );
    agent.kill('SIGKILL');
    await writer.goesOn(20, 60_000);
    t.pass('and then it can');
    t.equal(kept.ordered, true);
  },
);

// Seen red without units (the agent's rights are too few), with the default KillMode (what `pre` left was ended), and
// with a socket that is looked for in the machine's own /tmp.
t.test(
  'hooks as units of systemd, called by an agent in its own hardened unit',
  { skip: unable() || noMariaDb() || noSystemd() },
  async (t) => {
    const lab = new CaptureLab(t, 400);
    fs.chmodSync(lab.dir, 0o755);
    const at = (name: string) => join(lab.dir, name);
    const repo = join(import.meta.dirname, '../..');
    await installMariaDb(at('my'));
    const { hooksDir, runDir } = agentPaths(at('agent'));
    const agent = (...args: string[]) => {
      const command = [process.execPath, HOOK_AGENT, lab.dir, at('agent'), ...args].join(' ');
      return `[Service]\nExecStart=\nExecStart=${command}\nRestart=no\nWorkingDirectory=${repo}\nExecStopPost=\n`;
    };
    const settle = unitText().match(/^ExecStopPost=.* settle$/m);
    t.ok(settle, 'the unit settles at its end');
    const systemd = await RealSystemd.boot(lab, lab.dir, [repo], {
      // Its socket lies where nobody else sees it.
      'mariadb.service': `[Service]
Type=notify
ExecStart=/usr/sbin/mariadbd ${serverOptions('/var/lib/mysql', '/tmp/mysql.sock').join(' ')}
PrivateTmp=yes
BindPaths=${at('my')}:/var/lib/mysql
`,
      [UNIT_NAME]: unitText(),
      [`${UNIT_NAME}.d/agent.conf`]: agent(),
      'owing.service': unitText(),
      'owing.service.d/agent.conf': `${agent()}ExecStopPost=${process.execPath} ${HOOK_AGENT} ${lab.dir} ${at('agent')} settle\n`,
      'limit.service': unitText(),
      'limit.service.d/agent.conf': agent('limit', at('hangs')),
    });
    systemd.run('systemctl', 'start', 'mariadb');
    const main = systemd.run('systemctl', 'show', '-P', 'MainPID', 'mariadb').trim();
    const sql = (text: string) =>
      systemd.try(
        'mariadb',
        '--no-defaults',
        `--socket=/proc/${main}/root/tmp/mysql.sock`,
        '-e',
        text,
      );
    t.equal(sql('CREATE DATABASE lab; CREATE TABLE lab.t (n INT)').stderr, '');
    const insert = () => sql('SET lock_wait_timeout=1; INSERT INTO lab.t VALUES (1)').stderr;
    const hook = (path: string, text: string) => {
      fs.mkdirSync(join(path, '..'), { recursive: true });
      fs.writeFileSync(path, `#!/bin/sh\n${text}\n`, { mode: 0o755 });
    };
    const report = () =>
      JSON.parse(fs.readFileSync(at('report.json'), 'utf8')) as {
        hooks: HookReport[];
        postHooks: HookReport[];
        forbidden: string[];
      };
    const running = () => systemd.run('ps', '-eo', 'args');

    switchOn(hooksDir);
    hook(join(hooksDir, '10-absent'), 'exit 77');
    hook(join(hooksDir, '20-told'), 'printf %s "$UNDERSTUDY_POINT_NAME"; id -u');
    // Two things that the agent itself may not do.
    hook(
      join(hooksDir, '30-rights'),
      `touch ${at('its')} && chown ${SERVER_USER} ${at('its')} && unshare --mount true`,
    );
    hook(
      join(hooksDir, '40-leaves'),
      'if [ "$1" = pre ]; then sleep 4711 & echo $! >"$UNDERSTUDY_RUN_DIR/left"; else kill "$(cat "$UNDERSTUDY_RUN_DIR/left")"; fi',
    );
    systemd.run('systemctl', 'start', UNIT_NAME);
    await until('the hooks to hold', () => fs.existsSync(at('held')), 60_000);
    t.match(running(), /^sleep 4711$/m, 'what `pre` left is there');
    t.match(insert(), /Lock wait timeout/, 'and the session with the lock');
    const left = fs.readFileSync(join(runDir, 'left'), 'utf8').trim();
    const group = systemd.run('cat', `/proc/${left}/cgroup`);
    t.match(group, /^0::\/system\.slice\/run-\w+\.service$/m, 'in a group of its own');
    fs.writeFileSync(at('go'), '');
    await until('the point', () => fs.existsSync(at('report.json')), 60_000);
    const { hooks, postHooks, forbidden } = report();
    t.same(
      [...hooks, ...postHooks].map(({ name, phase, outcome, text }) =>
        `${phase} ${name} ${outcome} ${text}`.trim(),
      ),
      [
        'pre 10-absent skipped',
        'pre 20-told done two\nlines, 100 % of "$HOME"0',
        'pre 30-rights done',
        'pre 40-leaves done',
        'pre 50-postgresql skipped',
        'pre 60-mysql done tables of 1 server(s) are flushed and locked',
        'post 60-mysql done',
        'post 40-leaves done',
        'post 30-rights done',
        'post 20-told done two\nlines, 100 % of "$HOME"0',
      ],
    );
    t.same(forbidden, ['chown', 'unshare'], 'the agent itself has not the rights of its hooks');
    t.notMatch(running(), /sleep 4711/, 'until `post` ends it');
    t.equal(insert(), '');

    // Red with the unit's own RuntimeMaxSec: the script was ended, its `sleep` stayed.
    fs.rmSync(at('report.json'));
    hook(at('hangs'), 'echo "at it"; sleep 4712; true');
    systemd.run('systemctl', 'start', 'limit');
    await until('the limit', () => fs.existsSync(at('report.json')), 60_000);
    t.match(report().hooks, [{ outcome: 'timed-out', text: 'at it\nended after 5 s' }]);
    t.notMatch(running(), /sleep 4712/, 'with all that it started');

    for (const name of ['go', 'held']) fs.rmSync(at(name));
    for (const name of fs.readdirSync(hooksDir))
      if (name !== '60-mysql') fs.rmSync(join(hooksDir, name));
    await until(
      'the agent to have ended',
      () => systemd.try('systemctl', 'is-active', UNIT_NAME).status !== 0,
    );
    systemd.run('systemctl', 'start', UNIT_NAME);
    await until('the lock', () => fs.existsSync(at('held')), 60_000);
    t.match(insert(), /Lock wait timeout/);
    // Red without the session's look at the agent: 90 s.
    systemd.run('systemctl', 'kill', '--signal=KILL', UNIT_NAME);
    await until('the lock of a killed agent to end', () => insert() === '', 60_000);
    await until('its session, too', () => !/hook-mysql/.test(running()), 60_000);
    t.pass('nobody is left behind');

    // By the unit's own end, without another start of the agent. Red without ExecStopPost.
    for (const name of ['held', 'go']) fs.rmSync(at(name), { force: true });
    fs.rmSync(join(hooksDir, '60-mysql'));
    fs.rmSync(join(runDir, 'owed-posts.json'));
    hook(
      join(hooksDir, '40-leaves'),
      'if [ "$1" = pre ]; then sleep 4713 & echo $! >"$UNDERSTUDY_RUN_DIR/left"; else kill "$(cat "$UNDERSTUDY_RUN_DIR/left")"; fi',
    );
    for (const signal of ['KILL', 'TERM']) {
      systemd.run('systemctl', 'start', 'owing');
      await until('the hooks to hold', () => fs.existsSync(at('held')), 60_000);
      t.match(running(), /^sleep 4713$/m);
      systemd.run('systemctl', 'kill', `--signal=${signal}`, 'owing');
      await until('the post that is owed', () => fs.existsSync(at('settled.json')), 60_000);
      t.match(JSON.parse(fs.readFileSync(at('settled.json'), 'utf8')), [
        { name: '40-leaves', phase: 'post', outcome: 'done' },
      ]);
      t.notMatch(running(), /sleep 4713/);
      await until('its end', () => systemd.try('systemctl', 'is-active', 'owing').status !== 0);
      for (const name of ['held', 'settled.json']) fs.rmSync(at(name));
    }
  },
);
